"""Streams of OpenAI's dialect as its speakers write them, byte for byte after their documentation, and what they say."""

# Each line is one event, as it was sent.
# ruff: noqa: E501
from __future__ import annotations

from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

# name: (bytes, number of choices, events)
STREAMS: dict[str, tuple[bytes, int, list[Event]]] = {
    "openai": (
        b'data: {"id":"chatcmpl-B9","object":"chat.completion.chunk","created":1741570283,"model":"gpt-4o-2024-08-06",'
        b'"service_tier":"default","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"role":"assistant",'
        b'"content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x4"}\n\n'
        b'data: {"id":"chatcmpl-B9","object":"chat.completion.chunk","created":1741570283,"model":"gpt-4o-2024-08-06",'
        b'"choices":[{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
        b'data: {"id":"chatcmpl-B9","choices":[{"index":0,"delta":{"content":" \xe2\x82\xac!"},"logprobs":null,'
        b'"finish_reason":null}],"usage":null}\n\n'
        b'data: {"id":"chatcmpl-B9","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":null}\n\n'
        b'data: {"id":"chatcmpl-B9","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
        b'"prompt_tokens_details":{"cached_tokens":12,"audio_tokens":3},"completion_tokens_details":{"reasoning_tokens":4,'
        b'"audio_tokens":2,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            TextDelta(0, "Hello"),
            TextDelta(0, " €!"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(19, 10, 12, 4, prompt_audio_tokens=3, completion_audio_tokens=2)),
        ],
    ),
    "openai, tools": (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_a",'
        b'"type":"function","function":{"name":"get_weather","arguments":""}}],"refusal":null},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"city"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\":\\"Oslo\\"}"}}]}}]}'
        b"\n\n"
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_b","type":"function","function":'
        b'{"name":"clock","arguments":"{}"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ToolCallDelta(0, 0, "", "call_a", "get_weather"),
            ToolCallDelta(0, 0, '{"city'),
            ToolCallDelta(0, 0, '":"Oslo"}'),
            ToolCallDelta(0, 1, "{}", "call_b", "clock"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage()),
        ],
    ),
    "openai, refusal and logprobs of two choices": (
        b'data: {"choices":[{"index":1,"delta":{"role":"assistant","refusal":"I cannot"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"\xe2\x82\xac"},"logprobs":{"content":[{"token":"\\\\xe2",'
        b'"logprob":-0.25,"bytes":[226,130],"top_logprobs":[{"token":"a","logprob":-1.5,"bytes":null}]},{"token":"x",'
        b'"logprob":-9999.0,"bytes":[172],"top_logprobs":[]}],"refusal":null}}]}\n\n'
        b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"content_filter"}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
        b"data: [DONE]\n\ndata: [DONE]\n\n",
        2,
        [
            Started(0),
            RefusalDelta(1, "I cannot"),
            TextDelta(
                0,
                "€",
                (
                    TokenLogprob(-1, -0.25, b"\xe2\x82", (TopLogprob(-1, -1.5, b"a"),)),
                    TokenLogprob(-1, -9999.0, b"\xac"),
                ),
            ),
            ChoiceFinished(1, "content_filter"),
            ChoiceFinished(0, "length"),
            Finished(Usage()),
        ],
    ),
    "deepseek": (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":""}}]}\n\n'
        b": keep-alive\n\n"
        b'data: {"choices":[{"index":0,"delta":{"content":null,"reasoning_content":"Hm."}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"9.8","reasoning_content":null}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":{"prompt_tokens":17,'
        b'"completion_tokens":9,"total_tokens":26,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":9,'
        b'"completion_tokens_details":{"reasoning_tokens":5}}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ReasoningDelta(0, "Hm."),
            TextDelta(0, "9.8"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(17, 9, 8, 5)),
        ],
    ),
    "openrouter": (
        b": OPENROUTER PROCESSING\n\n"
        b'data: {"id":"gen-1","provider":"Anthropic","choices":[{"index":0,"delta":{"role":"assistant","content":"",'
        b'"reasoning":"Let me","reasoning_details":[{"type":"reasoning.text","text":"Let me","format":'
        b'"anthropic-claude-v1","index":0}]},"native_finish_reason":null,"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"","reasoning":null,"reasoning_details":[{"type":'
        b'"reasoning.text","signature":"sig==","index":0}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"","reasoning_details":[{"type":"reasoning.encrypted",'
        b'"data":"b3BhcXVl","index":1}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"Yes"},"finish_reason":"stop","native_finish_reason":"end_turn"'
        b"}]}\n\n"
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":{"prompt_tokens":30,'
        b'"completion_tokens":12,"total_tokens":42,"cost":0.0001,"prompt_tokens_details":{"cached_tokens":10,'
        b'"cache_write_tokens":15}}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ReasoningDelta(0, "Let me"),
            ReasoningDelta(0, "", "sig=="),
            ReasoningDelta(0, "", redacted="b3BhcXVl"),
            TextDelta(0, "Yes"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(30, 12, 10, cache_write_tokens=15)),
        ],
    ),
    "groq": (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"x_groq":{"id":"req_1"}}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"reasoning":"Hm"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"queue_time":'
        b'0.01,"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ReasoningDelta(0, "Hm"),
            TextDelta(0, "Hi"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(5, 3)),
        ],
    ),
    "xai": (
        b'data: {"choices":[{"index":0,"delta":{"content":"Hi","role":"assistant"}}],"usage":{"prompt_tokens":5,'
        b'"completion_tokens":1,"total_tokens":6}}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2'
        b',"total_tokens":107,"completion_tokens_details":{"reasoning_tokens":100}}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            TextDelta(0, "Hi"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(5, 102, reasoning_tokens=100)),
        ],
    ),
    "mistral": (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":[{"type":"thinking","thinking":'
        b'[{"type":"text","text":"Hm"}]}]},"finish_reason":null}]}\n\n'
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":[{"type":"text","text":"Hi"}]}}]}\n\n'
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"","tool_calls":[{"id":"D681PevKs","function":{"name":'
        b'"f","arguments":"{}"},"index":0}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":9,"total_tokens":12,'
        b'"completion_tokens":3}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ReasoningDelta(0, "Hm"),
            TextDelta(0, "Hi"),
            ToolCallDelta(0, 0, "{}", "D681PevKs", "f"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(9, 3)),
        ],
    ),
    "vllm": (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
        b'"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":0}}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"reasoning":"Hm","reasoning_content":"Hm"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"chatcmpl-tool-1","type":"function","index":0,'
        b'"function":{"name":"f"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"chatcmpl-tool-1","index":0,"function":{"name":"f",'
        b'"arguments":"{\\"a\\":"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop","stop_reason":null}]}\n\n'
        b'data: {"choices":null,"usage":{"prompt_tokens":9,"total_tokens":20,"completion_tokens":11}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ReasoningDelta(0, "Hm"),
            ToolCallDelta(0, 0, "", "chatcmpl-tool-1", "f"),
            ToolCallDelta(0, 0, '{"a":'),
            ToolCallDelta(0, 0, "1}"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(9, 11)),
        ],
    ),
    "ollama, without the end": (
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"call_1","type":'
        b'"function","function":{"name":"f","arguments":"{}"}},{"id":"call_2","type":"function","function":{"name":"f",'
        b'"arguments":{"a":1}}}]},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}',
        1,
        [
            Started(0),
            TextDelta(0, "Hi"),
            ToolCallDelta(0, 0, "{}", "call_1", "f"),
            ToolCallDelta(0, 1, '{"a":1}', "call_2", "f"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage()),
        ],
    ),
    "ollama": (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1747000000,"model":"qwen3","choices":[{"index":'
        b'0,"delta":{"role":"assistant","content":"","reasoning":"Hm"},"finish_reason":null}]}\n\n'
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":'
        b'"call_9","index":0,"type":"function","function":{"name":"get_weather","arguments":"{\\"city\\":\\"Oslo\\"}"}}]},'
        b'"finish_reason":null}]}\n\n'
        b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":'
        b'"tool_calls"}]}\n\n'
        b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":21,"completion_tokens":8,"total_tokens":29}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ReasoningDelta(0, "Hm"),
            ToolCallDelta(0, 0, '{"city":"Oslo"}', "call_9", "get_weather"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(21, 8)),
        ],
    ),
    "ollama, several calls of one index": (
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_1","index":0,"type":"function","function":'
        b'{"name":"f","arguments":"{\\"a\\":1}"}}]},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_2","index":0,"type":"function","function":'
        b'{"name":"f","arguments":"{\\"a\\":"}}]},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"2}"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_3","index":1,"type":"function","function":'
        b'{"name":"g","arguments":"{}"}}]},"finish_reason":null}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"tool_calls"}]}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ToolCallDelta(0, 0, '{"a":1}', "call_1", "f"),
            ToolCallDelta(0, 1, '{"a":', "call_2", "f"),
            ToolCallDelta(0, 1, "2}"),
            ToolCallDelta(0, 2, "{}", "call_3", "g"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage()),
        ],
    ),
    "an id for each piece, and usage in two": (
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"a","index":0,"function":{"name":"f","arguments":'
        b'"{"}}]}}],"usage":{"prompt_tokens":30}}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"b","index":0,"function":{"arguments":"}"}}]}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}],"usage":{"completion_tokens":9}}\n\n'
        b'data: {"choices":[],"usage":{}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            ToolCallDelta(0, 0, "{", "a", "f"),
            ToolCallDelta(0, 0, "}"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(30, 9)),
        ],
    ),
    "cohere": (
        b'data: {"id":"8f1","object":"chat.completion.chunk","created":1747000000,"model":"command-a-03-2025","choices":'
        b'[{"index":0,"finish_reason":null,"delta":{"role":"assistant","content":""}}]}\n\n'
        b'data: {"id":"8f1","choices":[{"index":0,"finish_reason":null,"delta":{"content":"I look."}}]}\n\n'
        b'data: {"id":"8f1","choices":[{"index":0,"finish_reason":null,"delta":{"tool_calls":[{"index":0,"id":"get_x4k",'
        b'"type":"function","function":{"name":"get_weather","arguments":""}}]}}]}\n\n'
        b'data: {"id":"8f1","choices":[{"index":0,"finish_reason":null,"delta":{"tool_calls":[{"index":0,"function":'
        b'{"arguments":"{\\"city\\":\\"Oslo\\"}"}}]}}]}\n\n'
        b'data: {"id":"8f1","choices":[{"index":0,"finish_reason":"tool_calls","delta":{}}],"usage":{"prompt_tokens":21,'
        b'"completion_tokens":8,"total_tokens":29}}\n\n'
        b"data: [DONE]\n\n",
        1,
        [
            Started(0),
            TextDelta(0, "I look."),
            ToolCallDelta(0, 0, "", "get_x4k", "get_weather"),
            ToolCallDelta(0, 0, '{"city":"Oslo"}'),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(21, 8)),
        ],
    ),
    "azure, which begins with what its filter says": (
        b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,'
        b'"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}\r\n\r\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"content_filter_results":{},"finish_reason":"stop"}]}'
        b"\r\n\r\n"
        b"data: [DONE]\r\n\r\n",
        1,
        [Started(0), TextDelta(0, "Hi"), ChoiceFinished(0, "stop"), Finished(Usage())],
    ),
    "one that says only when it is over": (
        b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n',
        1,
        [Started(0), TextDelta(0, "Hi"), ChoiceFinished(0, "stop"), Finished(Usage())],
    ),
}
