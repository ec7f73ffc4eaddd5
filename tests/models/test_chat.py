import pytest

from compressjax.models.chat import render_chat

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASK = [{"role": "user", "content": "Hi <b>"}]


def test_chatml():
    turn = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n"
    assert render_chat(CHATML, ASK) == turn + "<|im_start|>assistant\n"
    assert render_chat(CHATML, ASK, add_generation_prompt=False) == turn


def test_special_tokens_and_further_variables():
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ mood }}"
    assert render_chat(template, ASK, bos_token="<s>", eos_token="</s>", mood="!") == "<s>Hi <b></s>!"


def test_block_lines_leave_no_blanks():
    assert render_chat("{% for m in messages %}\n  {% if m.content %}\nx\n  {% endif %}\n{% endfor %}\n", ASK) == "x\n"


def test_loop_controls_and_json_without_html_escapes():
    template = "{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}"
    assert render_chat(template, ASK * 2) == '{"role": "user", "content": "Hi <b>"}'


def test_the_templates_own_refusal_reaches_the_user():
    with pytest.raises(ValueError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", ASK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].content }}",
    ],
)
def test_what_a_template_must_not_do_is_a_value_error(template):
    with pytest.raises(ValueError, match="chat template"):
        render_chat(template, ASK)


def test_messages_are_left_as_they_were():
    message = {"role": "user", "content": "x"}
    render_chat(CHATML, [message])
    assert message == {"role": "user", "content": "x"}


def test_refused_messages():
    with pytest.raises(ValueError, match="empty"):
        render_chat(CHATML, [])
    with pytest.raises(ValueError, match=r"messages\[1\] has no role and no content"):
        render_chat(CHATML, [*ASK, {"text": "x"}])
