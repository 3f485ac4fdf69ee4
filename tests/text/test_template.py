"""Chat templates render as Hugging Face renders them, and cannot run away."""

from __future__ import annotations

import time

import pytest

from paddle_ds.errors import ChatTemplateError
from paddle_ds.text import ChatTemplate

MESSAGES = [{"role": "user", "content": "你好 <b>"}, {"role": "assistant", "content": "Hi"}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}", "user\nassistant\n"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "你好 <b>"}'),
        ("{{ {'b': 1, 'a': [1, 2]} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": [\n    1,\n    2\n  ],\n  "b": 1\n}'),
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ nothing }}", "<s>你好 <b>"),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}{{ loop.last }};{% endfor %}", "0/2False;1/2True;"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Hi"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f('b') }}", "[a][b]"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ (messages | selectattr('role', 'equalto', 'user') | list | first).content.split(' ')[0] }}", "你好"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "a=1"),
        ("{{ 'a' if 'x' in 'xyz' and messages[0].role == 'user' else 'b' }}", "a"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '{:>3}'.format(7) }}{{ ' x ' | trim }}{{ '=' * 3 }}", "a-3  7x==="),
        ("{{ tools is none }}{{ messages[::-1][0].role }}{{ messages[1:] | length }}", "Trueassistant1"),
        ("{{ 'a,b'.replace(',', ';').upper() }}{{ 'x'.join(['1', '2']) }}", "A;B1x2"),
        ("{% for a in [[1, [2]], [3]] recursive %}{{ loop(a) if a is sequence else a }}{% endfor %}", "123"),
    ],
)
def test_rendering(source, expected):
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES) == expected


def test_variables_and_arguments():
    template = ChatTemplate("{{ enable_thinking }}{{ add_generation_prompt }}{{ tools | length if tools }}")
    assert template.render(MESSAGES, enable_thinking=False, add_generation_prompt=False, tools=[{}]) == "FalseFalse1"
    assert template.variables == {"enable_thinking", "add_generation_prompt", "tools"}


def test_strftime_now_is_today():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(MESSAGES) in (time.strftime("%Y"), str(int(time.strftime("%Y")) - 1))


def test_an_argument_cannot_replace_the_messages():
    with pytest.raises(ChatTemplateError, match="set by the server"):
        ChatTemplate("x").render(MESSAGES, **{"messages": []})


def test_continuing_the_final_message_ends_with_its_text():
    template = ChatTemplate(
        "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    assert template.render(MESSAGES, continue_final_message=True) == "[你好 <b>][Hi"
    assert MESSAGES[-1]["content"] == "Hi"


@pytest.mark.parametrize("messages", [[], MESSAGES[:1], [{"role": "assistant", "content": None}]])
def test_only_text_of_the_assistant_can_be_continued(messages):
    with pytest.raises(ChatTemplateError, match="by the assistant"):
        ChatTemplate("x").render(messages, continue_final_message=True)


def test_a_template_that_drops_the_final_message_cannot_continue_it():
    with pytest.raises(ChatTemplateError, match="leaves out"):
        ChatTemplate("{{ messages[0].content }}").render(MESSAGES, continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[0].nothing + 'x' }}", "refuses these messages"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'x' + 1 }}", "TypeError"),
        ("{% include 'other' %}", "failed"),
    ],
)
def test_a_failing_template_is_a_typed_error(source, what):
    with pytest.raises(ChatTemplateError, match=what):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x | nothing }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "x" * 300_000]
)
def test_a_template_that_does_not_compile_is_refused(source):
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source)


DOUBLE = "{% set ns = namespace(x=['a'], y=['a']) %}{% for i in range(50) %}{% set ns.x = START %}{% endfor %}"
NESTED = DOUBLE.replace("START", "(ns.x, ns.x)").replace("{% endfor", "{% set ns.y = (ns.y, ns.y) %}{% endfor")
LONG = "{% set a = 'a' * 1000000 %}"
EVIL = {
    "class-of-a-string": "{{ ''.__class__.__mro__ }}",
    "class-of-a-message": "{{ messages[0].__class__ }}",
    "attr-filter": "{{ '' | attr('__class__') }}",
    "attribute-map": "{{ [''] | map(attribute='__class__') | list }}",
    "globals-of-a-function": "{{ raise_exception.__globals__ }}",
    "class-by-format": "{{ '{0.__class__}'.format('') }}",
    "class-by-format-map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "change-the-messages": "{{ messages.append(1) }}",
    "change-a-message": "{{ messages[0].update({'role': 'system'}) }}",
    "huge-range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "nested-ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursive-loop": "{% for x in range(9999) recursive %}{% if loop.depth < 4 %}{{ loop(range(9999)) }}{% endif %}{% endfor %}",
    "endless-macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching-macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "slow-steps": "{% for i in range(50000) %}{% set _ = range(100000) | list | sort %}{% endfor %}",
    "huge-output": "{% for i in range(99999) %}" + "A" * 2000 + "{% endfor %}",
    "huge-block": "{% set x %}{% for i in range(99999) %}" + "A" * 20000 + "{% endfor %}{% endset %}{{ x | length }}",
    "multiplied-string": "{{ 'a' * 10 ** 10 }}",
    "multiplied-list": "{{ ([1] * 10 ** 9) | length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set ns = namespace(x=10) %}{% for i in range(50) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled-by-tilde": DOUBLE.replace("START", "ns.x ~ ns.x") + "{{ ns.x | length }}",
    "doubled-by-plus": DOUBLE.replace("START", "ns.x + ns.x") + "{{ ns.x | length }}",
    "nested-list-written": NESTED + "{{ ns.x }}",
    "nested-list-as-json": NESTED + "{{ ns.x | tojson }}",
    "nested-list-compared": NESTED + "{{ ns.x == ns.y }}",
    "nested-list-tested": NESTED + "{{ [ns.x] | select('equalto', ns.y) | list }}",
    "nested-list-as-key": NESTED + "{{ {ns.x: 1} }}",
    "nested-list-looked-up": NESTED + "{{ {}[ns.x] }}",
    "nested-list-in-an-error": NESTED + "{{ raise_exception(ns.x) }}",
    "percent-width": "{{ '%999999999d' % 1 }}",
    "percent-star": "{{ '%*d' % (999999999, 1) }}",
    "format-width": "{{ '{:999999999}'.format(1) }}",
    "format-nested-width": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "padding": "{{ 'a'.zfill(10 ** 9) | length }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(10000) | length }}",
    "replace-method": LONG + "{{ a.replace('a', a) | length }}",
    "replace-filter": LONG + "{{ a | replace('a', a) | length }}",
    "join-method": LONG + "{{ a.join(range(9999) | map('string')) | length }}",
    "join-filter": LONG + "{{ range(9999) | join(a) | length }}",
    "indent": "{{ 'a\nb' | indent(10 ** 9) }}",
    "json-indent": "{{ [1] | tojson(indent=10 ** 9) }}",
    "int-to-bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "translate": LONG + "{{ a.translate({97: a}) }}",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("source", EVIL.values(), ids=EVIL.keys())
def test_a_hostile_template_is_refused_quickly(source):
    started = time.process_time()
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source).render(MESSAGES)
    assert time.process_time() - started < 5


def test_a_long_conversation_stays_within_the_budget():
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ 'U' + m.content | trim }}{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 5000
    assert len(ChatTemplate(source).render(messages)) == 5000 * 1000
