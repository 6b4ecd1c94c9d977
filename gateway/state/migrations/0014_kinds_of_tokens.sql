-- Tokens of a request that some providers price apart: input that they keep for later prompts (part of it for an hour),
-- and audio. All of them are part of its prompt_tokens and completion_tokens.
ALTER TABLE ledger ADD COLUMN cache_write_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN cache_write_1h_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN prompt_audio_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN completion_audio_tokens BIGINT NOT NULL DEFAULT 0;
