"""Asks one question through LlamaIndex, at once and streamed: `llama_index_chat.py BASE_URL KEY`."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

base_url, key = sys.argv[1:]
llm = OpenAILike(model="demo", api_base=base_url, api_key=key, is_chat_model=True, temperature=0)
question = [ChatMessage(role="user", content="What is the capital of France?")]
print(str(llm.chat(question).message.content).replace("\n", " "))
print("".join(piece.delta or "" for piece in llm.stream_chat(question)).replace("\n", " "))
