"""Prompt formats as published: with the Qwen2.5-Math evaluation, Dynamic FT, Discriminative FT, and R1-Zero."""

from __future__ import annotations

from dftune.data.prompt_format import SLOT, PromptFormat

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_R1_ZERO = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: {problem}\nAssistant: <think>"
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{problem}\n\n### Response:\n"
)
_QWEN_MATH = "github.com/QwenLM/Qwen2.5-Math, evaluation/utils.py"


def _chatml(system: str, user: str) -> tuple[str, str]:
    """The first question of a conversation and a later one."""
    question = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    return f"<|im_start|>system\n{system}<|im_end|>\n{question}", "\n" + question


def _llama(system: str, user: str, end: str) -> tuple[str, str]:
    def message(role: str, content: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}{end}\n"

    question = message("user", user) + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    return message("system", system) + question, "\n" + question


_qwen_boxed, _qwen_boxed_later = _chatml("You are a helpful assistant.", f"{SLOT}\n{_BOXED}")
_qwen_cot, _qwen_cot_later = _chatml(_BOXED, SLOT)
_llama_boxed, _llama_boxed_later = _llama("You are a helpful assistant.", f"{SLOT}\n{_BOXED}", "<|end_of_text|>")

# The evaluation code strips spaces off the ends of a prompt, so `Answer: ` becomes `Answer:` and the completion begins
# with a space. Its stop strings for metamath, the bare words Question and Response among them, cut any text that holds
# them; they are left out.
FORMATS: dict[str, PromptFormat] = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat("plain", "{problem}\n", source="dftune"),
        PromptFormat(
            "qwen-boxed",
            _qwen_boxed,
            "<|im_end|>",
            later_template=_qwen_boxed_later,
            shots="turns",
            source=_QWEN_MATH,
        ),
        PromptFormat(
            "qwen25-math-cot",
            _qwen_cot,
            "<|im_end|>",
            later_template=_qwen_cot_later,
            shots="in_problem",
            source=_QWEN_MATH,
        ),
        PromptFormat(
            "llama-base-boxed",
            _llama_boxed,
            "<|end_of_text|>",
            later_template=_llama_boxed_later,
            shots="turns",
            source="github.com/yongliang-wu/DFT, evaluation",
        ),
        PromptFormat(
            "deepseek-math",
            f"User: {SLOT}\n{_BOXED}\n\nAssistant:",
            completion_prefix=" ",
            separator="\n\n\n",
            source=_QWEN_MATH,
        ),
        PromptFormat(
            "cot",
            "Question: {problem}\nAnswer:",
            completion_prefix=" ",
            stop=("\n\nQuestion:",),
            separator="\n\n\n",
            source=_QWEN_MATH,
        ),
        PromptFormat("metamath", _ALPACA, source="Discriminative FT; Stanford Alpaca"),
        PromptFormat(
            "numina",
            "### Problem: {problem}\n### Solution:",
            completion_prefix=" ",
            stop=("\n### Problem",),
            source=_QWEN_MATH,
        ),
        PromptFormat(
            "r1-zero", _R1_ZERO, completion_prefix=" ", stop=("</answer>",), source="DeepSeek-R1, arXiv:2501.12948"
        ),
    )
}
