import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.templates import CHATML, ChatTemplate, TemplateError
from adapters.types import Message, Tool, ToolCall

LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start|>ipython<|end|>\\n\\n' + message.content | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('Only one call at once!') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name }}
        {{- '", "parameters": ' + call.arguments | tojson + '}<|eot|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message.content | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set ns = namespace(user=true) %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message.role in ('user', 'assistant') and not message.tool_calls %}
        {%- if (message.role == 'user') != ns.user %}
            {{- raise_exception('Roles must alternate user/assistant!') }}
        {%- endif %}
        {%- set ns.user = not ns.user %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' }}
        {%- if loop.last and system is defined %}{{ system ~ '\\n\\n' }}{% endif %}
        {{- message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('Ids have nine letters!') }}{%- endif %}
            {{- '[CALL]' + call.function | tojson + call.id }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- '[RESULT]' + message.content + message.tool_call_id }}
    {%- else %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<turn>' + role + '\\n' + message['content'] | trim + '</turn>' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}
"""

SYSTEM = Message("system", "Be brief.")
USER = Message("user", "Hi")
ASSISTANT = Message("assistant", "Hello")
CALL = Message("assistant", tool_calls=(ToolCall("call_1234567", "weather", '{"city": "Zürich"}'),))
RESULT = Message("tool", "sunny", name="weather", tool_call_id="call_1234567")
TOOL = Tool("weather", "The <weather>", msgspec.Raw(b'{"type":"object","properties":{"items":{"type":"string"}}}'))


def template(source: str, now: Callable[[], datetime] = datetime.now) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", now=now)


def test_chatml() -> None:
    chat = template(CHATML)
    assert chat.render((SYSTEM, USER, ASSISTANT, USER), ()) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.render((), ()) == "<|im_start|>assistant\n"


def test_llama() -> None:
    assert template(LLAMA).render((SYSTEM, Message("user", " Hi ")), ()) == (
        "<s><|start|>system<|end|>\n\nBe brief.<|eot|><|start|>user<|end|>\n\nHi<|eot|><|start|>assistant<|end|>\n\n"
    )


def test_tools_and_calls_are_given_as_openai_clients_write_them() -> None:
    prompt = template(LLAMA).render((USER, CALL, RESULT), (TOOL,))
    assert '{"name": "weather", "parameters": {"city": "Zürich"}}<|eot|><|start|>ipython<|end|>\n\nsunny' in prompt
    written = prompt[prompt.index('{\n  "type"') : prompt.rindex("<|start|>")]
    function = {"name": "weather", "description": "The <weather>", "parameters": json.loads(bytes(TOOL.parameters))}
    assert json.loads(written) == {"type": "function", "function": function}
    assert "<weather>" in written


def test_arguments_that_are_not_an_object_stay_text() -> None:
    call = Message("assistant", tool_calls=(ToolCall("call_1", "weather", '{"city'),))
    assert r'"parameters": "{\"city"' in template(LLAMA).render((USER, call, RESULT), ())


def test_arguments_stay_text_for_a_template_that_needs_text() -> None:
    source = CHATML.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for call in message.tool_calls %}{{ '=' + call.function.arguments }}{% endfor %}",
    )
    assert '={"city": "Zürich"}' in template(source).render((USER, CALL, RESULT), ())


def test_mistral() -> None:
    chat = template(MISTRAL)
    assert (
        chat.render((SYSTEM, USER, ASSISTANT, USER), ()) == "<s>[INST] Hi[/INST] Hello</s>[INST] Be brief.\n\nHi[/INST]"
    )
    with pytest.raises(TemplateError) as caught:
        chat.render((USER, USER), ())
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")
    assert (
        caught.value.message == "the model's chat template refuses these messages: Roles must alternate user/assistant!"
    )


def test_ids_of_calls_are_shortened_where_they_must_be() -> None:
    prompt = template(MISTRAL).render((USER, CALL, RESULT), (TOOL,))
    identifier = prompt[-9:]
    assert identifier.isalnum()
    assert prompt.count(identifier) == 2


def calling(*ids: str, **more: Any) -> Message:
    """A message with a call for each id."""
    calls = tuple(ToolCall(id, "weather", "{}") for id in ids)
    return Message("assistant", tool_calls=calls, **more)


SAYS_CALLS = """\
{%- for message in messages %}
    {%- for call in message.tool_calls %}{{ '<call ' + call.id + call.function.arguments | tojson + '>' }}{% endfor %}
    {%- if message.content is not none %}{{ '<' + message.role + ' ' + message.content + '>' }}{% endif %}
{%- endfor %}
{%- for tool in tools %}{{ tool.function.description }}{% endfor %}"""


def test_content_is_left_out_beside_calls_where_an_empty_one_would_be_written() -> None:
    prompt = template(SAYS_CALLS).render((USER, calling("a")), ())
    assert prompt == "<user Hi><call a{}>"
    assert template(SAYS_CALLS).render((calling("a", content="Wait."),), ()) == "<call a{}><assistant Wait.>"


ONE_CALL = """\
{%- for message in messages %}
    {%- if message.tool_calls and message.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}
    {%- set call = message.tool_calls[0] if message.tool_calls %}
    {%- if call %}{{ '<call ' + call.id + call.function.arguments | tojson + '>' }}{% endif %}
    {%- if message.content %}{{ '<' + message.role + ' ' + message.content + '>' }}{% endif %}
{%- endfor %}"""


@pytest.mark.parametrize("refusal", ["{{ raise_exception('one at a time') }}", ""])
def test_several_calls_become_several_messages_where_a_message_has_one_at_most(refusal: str) -> None:
    source = ONE_CALL.replace("{{ raise_exception('one at a time') }}", refusal)
    results = [Message("tool", f"for {id}", tool_call_id=id) for id in ("b", "a", "nobody")]
    turns = (USER, calling("a", "b", "c", content="Wait."), *results, calling("d"), ASSISTANT, USER)
    assert template(source).render(turns, (TOOL,)) == (
        "<user Hi><call a{}><assistant Wait.><tool for a><call b{}><tool for b><call c{}><tool for nobody>"
        "<call d{}><assistant Hello><user Hi>"
    )


def test_what_a_template_does_not_show() -> None:
    silent, telling = template(CHATML), template(SAYS_CALLS)
    assert not (silent.shows_tools or silent.shows_calls)
    assert telling.shows_tools and telling.shows_calls


def test_parameters_are_described_where_a_template_needs_it() -> None:
    source = CHATML + (
        "{% for tool in tools %}{% for key, value in tool.function.parameters.properties.items() %}"
        "{{ key + ': ' + value.description }}{% endfor %}{{ tool.function.description }}{% endfor %}"
    )
    assert template(source).render((USER,), (TOOL,)).endswith("items: The <weather>")


def test_lists_of_a_template_may_grow() -> None:
    source = CHATML + "{% set ids = ['a'] %}{% set _ = ids.append('b') %}{{ ids.pop(0) + ids | join }}"
    assert template(source).render((USER,), ()).endswith("ab")


def test_without_a_system_role_its_text_goes_to_the_user() -> None:
    chat = template(GEMMA)
    assert chat.render((SYSTEM, USER), ()) == "<s><turn>user\nBe brief.\n\nHi</turn>\n<turn>model\n"
    assert chat.render((Message("developer", "Be brief."),), ()) == "<s><turn>user\nBe brief.</turn>\n<turn>model\n"
    assert chat.render((USER, ASSISTANT, SYSTEM, USER), ()).endswith(
        "<turn>user\nBe brief.\n\nHi</turn>\n<turn>model\n"
    )


def test_a_developer_is_the_system() -> None:
    assert template(CHATML).render((Message("developer", "x"),), ()).startswith("<|im_start|>system\nx<|im_end|>")


@pytest.mark.parametrize("source", [CHATML, LLAMA, MISTRAL, GEMMA])
@pytest.mark.parametrize("content", ["Sure: ", "", "Hi", "a\n\n", "<|im_end|>", "</s>Hello"])
def test_a_final_assistant_message_is_continued(source: str, content: str) -> None:
    chat = template(source)
    prompt = chat.render((USER, Message("assistant", content)), ())
    start = chat.render((USER,), ())
    assert prompt.startswith(start)
    assert prompt.removeprefix(start).lstrip() == content


def test_a_template_that_wants_the_last_word_from_the_user_gets_the_answer_appended() -> None:
    refusing = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    silent = CHATML.replace("{{ message.content }}", "{{ message.content if message.role == 'user' }}")
    for source in (refusing, silent):
        prompt = template(source).render((USER, Message("assistant", " Sure")), ())
        assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Sure"


def test_content_in_parts_for_a_template_that_wants_parts() -> None:
    source = "{% for message in messages %}{% for part in message.content %}{{ part.text }}|{% endfor %}{% endfor %}"
    assert template(source).render((SYSTEM, USER), ()) == "Be brief.|Hi|"


def test_an_empty_list_of_tools_for_a_template_that_wants_one() -> None:
    source = "{{ tools | length }}" + CHATML
    assert template(source).render((USER,), ()).startswith("0<|im_start|>")
    assert template("{{ tools is none }}" + CHATML).render((USER,), ()).startswith("True<|im_start|>")


def test_what_templates_of_the_field_use() -> None:
    source = (
        "{% generation %}{{ strftime_now('%d %b %Y') }}{% endgeneration %}|"
        "{% for n in range(9) %}{% if n == 1 %}{% continue %}{% elif n > 2 %}{% break %}{% endif %}{{ n }}{% endfor %}|"
        "{{ messages | map(attribute='role') | tojson }}|{{ {'b': 'é<', 'a': none} | tojson(sort_keys=true) }}|"
        "{{ '{} {:>3}'.format(1, 2) }}|{{ '%s-%d' % ('a', 5) }}|{{ 'x'.join(['a', 'b']) }}|"
        "{{ 'abc'.replace('b', 'd') }}|{{ ['a', 1] | join(', ') }}|{{ 'a\nb' | indent(2) }}|{{ '<b>' | safe + '<' }}|"
        "{{ ('a,b'.split(',') | last) * 2 }}|{{ {'x': 1}.items() | list }}|"
        "{% set name %}{{ 'n' ~ 1 }}{% endset %}{{ name }}|{{ '[1]' | from_json | first }}|"
        "{% macro twice(text) %}{{ text }}{{ text }}{% endmacro %}{{ twice('z') | upper }}|{{ namespace(a=1).a }}"
    )
    chat = template(source, now=lambda: datetime(2026, 7, 26))
    assert chat.render((SYSTEM, USER), ()) == (
        '26 Jul 2026|02|["system", "user"]|{"a": null, "b": "é<"}|1   2|a-5|axb|adc|a, 1|a\n  b|<b><|bb|'
        "[('x', 1)]|n1|1|ZZ|1"
    )


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ x", "{% if %}", "{{ 1 | nothing }}", "(" * 50_000 + "{{" + "(" * 50_000, "x" * (1 << 20) + "y"],
)
def test_a_broken_template_is_a_broken_model(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        template(source)
    assert (caught.value.code, caught.value.param) == ("model_invalid", None)


def test_a_template_that_exceeds_its_limits_is_a_broken_model() -> None:
    with pytest.raises(TemplateError, match="not usable: more than") as caught:
        template("{{ 'a' * 10 ** 9 }}")
    assert caught.value.code == "model_invalid"


def test_a_template_that_exceeds_its_limits_on_some_messages() -> None:
    source = "{% if messages | length == 5 %}{{ 'a' * 10 ** 9 }}{% endif %}" + CHATML
    with pytest.raises(TemplateError, match="needs too much for these messages: more than") as caught:
        template(source).render((USER, ASSISTANT, USER, ASSISTANT, USER), ())
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")


@pytest.mark.parametrize(
    "content",
    [
        "{{ missing.field }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ messages.insert(0, 1) }}",
        "{{ ''.__class__() }}",
    ],
)
def test_a_template_that_fails_on_some_messages(content: str) -> None:
    source = "{% if messages | length == 3 %}" + content + "{% endif %}"
    with pytest.raises(TemplateError, match="fails on these messages") as caught:
        template(source).render((USER, ASSISTANT, USER), ())
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")


def test_tools_that_are_not_json() -> None:
    with pytest.raises(TemplateError) as caught:
        template(CHATML).render((USER,), (Tool("x", "", msgspec.Raw(b"{")),))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "tools")


@pytest.mark.slow
@given(st.lists(st.sampled_from(("system", "user", "assistant", "tool")), max_size=5), st.text(max_size=8))
def test_any_conversation_renders_or_is_refused(roles: list[str], content: str) -> None:
    messages = tuple(msgspec.convert({"role": role, "content": content}, Message) for role in roles)
    assert template(CHATML).render(messages, ()).count(content) >= len(roles)
    try:
        template(MISTRAL).render(messages, ())
    except TemplateError as error:
        assert error.param == "messages"


THINKING = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.KEY is defined and message.role == 'assistant' %}<think>{{ message.KEY }}</think>{% endif %}
    {{- message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>
{%- endif %}{% endif %}
"""


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_reach_templates_that_have_a_place_for_them(key: str) -> None:
    turns = (Message("user", "2+2?"), Message("assistant", "4", reasoning="Hm."), Message("user", "Sure?"))
    made = ChatTemplate(THINKING.replace("KEY", key), bos_token="", eos_token="")
    written = "<|user|>2+2?<|end|><|assistant|><think>Hm.</think>4<|end|><|user|>Sure?<|end|><|assistant|>"
    assert made.render(turns) == written
    assert "Hm." not in ChatTemplate(CHATML, bos_token="", eos_token="").render(turns)


def test_a_request_turns_the_switches_of_a_template_and_nothing_else() -> None:
    made = ChatTemplate(THINKING, bos_token="", eos_token="")
    user = (Message("user", "Hi"),)
    assert made.render(user, (), {"enable_thinking": False}).endswith("<|assistant|><think></think>")
    assert made.render(user, (), {"messages": "x", "add_generation_prompt": False}) == made.render(user)


PHI = """\
{%- for message in messages %}
    {%- if message.role == 'system' and 'tools' in message %}
        {{- '<|system|>' + message.content + '<|tool|>' + message.tools + '<|/tool|><|end|>' }}
    {%- else %}{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}{%- endif %}
{%- endfor %}
"""


def test_tools_in_the_system_message() -> None:
    made = ChatTemplate(PHI, bos_token="", eos_token="")
    tool = Tool("now", "The time.")
    written = '<|tool|>[{"name":"now","description":"The time.","parameters":{}}]<|/tool|><|end|><|user|>Hi<|end|>'
    assert made.render((Message("user", "Hi"),), (tool,)) == "<|system|>" + written
    assert made.render((Message("system", "S"), Message("user", "Hi")), (tool,)) == "<|system|>S" + written
    assert made.render((Message("user", "Hi"),)) == "<|user|>Hi<|end|>"


def test_an_effort_that_a_template_refuses_becomes_one_that_it_takes() -> None:
    choosy = "{%- if reasoning_effort is defined and reasoning_effort not in ['high', 'low'] %}"
    made = template(choosy + "{{ raise_exception('which?') }}{%- endif %}{{ reasoning_effort }}" + CHATML)
    assert [made.render((USER,), (), {"reasoning_effort": one})[:4] for one in ("low", "medium")] == ["low<", "high"]
    assert (
        template("{{ reasoning_effort }}" + CHATML).render((USER,), (), {"reasoning_effort": "medium"})[:6] == "medium"
    )


def test_switches_of_thinking_by_the_names_that_families_give_them() -> None:
    made = template("{{ thinking_mode }} {{ thinking_effort }} {{ reasoning_strength }}|" + CHATML)
    begin = "<|im_start|>user"
    given: dict[str, str | bool | int] = {"enable_thinking": True, "reasoning_effort": "medium"}
    assert made.render((USER,), (), given).partition(begin)[0] == "enabled high medium|"
    assert made.render((USER,), (), {"enable_thinking": False}).partition(begin)[0] == "disabled  |"
    assert made.render((USER,), ()).partition(begin)[0] == "  |"
