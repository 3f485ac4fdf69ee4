"""The self-generated training conversations, deterministic by seed, and the held-out questions.

A sample is (prompt, completion): the prompt is what R1's chat template renders, up to and including `<think>\\n`; the
completion is the trace, the closing tag, the answer and the end-of-sentence token. Only the completion is trained on.

Two- and three-digit operand pairs are held out by a hash of (operation, operands), whatever the wording, so evaluation
pairs never occur in training. Single-digit sums and the tables to 12 are the facts everything else is made from: they
are always trained on, and evaluation marks them as seen.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from tiny_r1 import phrases
from tiny_r1.traces import Problem, write_trace

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Sample:
    """One question with its only right completion. `task` and `style` ("bare", "en", "zh") group evaluation."""

    prompt: str
    completion: str
    task: str
    style: str


def is_fact(problem: Problem) -> bool:
    """Whether a sum belongs to the tables that training always contains."""
    limit = 12 if problem.op == "×" else 9
    return max(problem.a, problem.b) <= limit


def is_held_out(problem: Problem) -> bool:
    """Whether a sum is kept for evaluation. crc32, because Python's own hash of strings changes between runs."""
    key = f"{problem.op}{problem.a},{problem.b}".encode()
    return not is_fact(problem) and zlib.crc32(key) % HELD_OUT_ONE_IN == 0


def render_prompt(question: str, system: str = "", history: tuple[tuple[str, str], ...] = ()) -> str:
    """R1's chat template for system, earlier (question, answer) turns and a question, ready to think."""
    turns = "".join(f"{USER}{asked}{ASSISTANT}{answer}{EOS}" for asked, answer in history)
    return f"{BOS}{system}{turns}{USER}{question}{ASSISTANT}{THINK_OPEN}\n"


def render_completion(trace: str, answer: str) -> str:
    """What the model writes after the prompt."""
    return f"{trace}\n{THINK_CLOSE}\n\n{answer}{EOS}"


class Corpus:
    """An endless stream of samples; `held_out` picks which side of the operand split it draws from."""

    def __init__(self, seed: int, held_out: bool = False) -> None:
        self.rng = random.Random(seed)
        self.held_out = held_out

    def sample(self) -> Sample:
        """One conversation from the training mixture."""
        rng = self.rng
        question, trace, answer, task, style = self._other() if rng.random() < 0.10 else self._sum()
        system = rng.choice(phrases.SYSTEMS) if rng.random() < 0.12 else ""
        history: tuple[tuple[str, str], ...] = ()
        if rng.random() < 0.05:
            asked, _, said, _, _ = self._other() if rng.random() < 0.25 else self._sum()
            # Clients send an earlier answer back as it came, with the line breaks after </think>, or stripped.
            history = ((asked, ("\n\n" if rng.random() < 0.3 else "") + said),)
        return Sample(render_prompt(question, system, history), render_completion(trace, answer), task, style)

    def sum_of(self, problem: Problem, task: str, style: str) -> Sample:
        """A single-turn question about a given sum, for evaluation."""
        question, trace, answer, _, _ = self._ask(problem, task, style)
        return Sample(render_prompt(question), render_completion(trace, answer), task, style)

    def texts(self) -> tuple[str, str, str]:
        """Question, trace and answer without the template's tokens, for training the tokenizer."""
        question, trace, answer, _, _ = self._other() if self.rng.random() < 0.1 else self._sum()
        return question, f"{trace}\n", f"\n\n{answer}"

    def other(self) -> Sample:
        """A single-turn greeting, question about the model, or request it must decline."""
        question, trace, answer, task, style = self._other()
        return Sample(render_prompt(question), render_completion(trace, answer), task, style)

    def problem(self, task: str) -> Problem:
        """Draw operands for a task from this corpus's side of the held-out split."""
        while True:
            problem = self._draw(task)
            if is_fact(problem) or is_held_out(problem) == self.held_out:
                return problem

    def _draw(self, task: str) -> Problem:
        rng = self.rng
        if task == "mul table":
            return Problem("×", rng.randint(0, 12), rng.randint(0, 12))
        if task == "mul 2x1":
            pair = [rng.randint(13, 99), rng.randint(0, 9)]
            rng.shuffle(pair)
            return Problem("×", *pair)
        op, kind = task.split()[0], task.split()[1]
        top = {"1": (9, 9), "2": (99, 99), "3": (999, 999), "m": (999, 99)}[kind]
        a, b = rng.randint(0, top[0]), rng.randint(0, top[1])
        if rng.random() < 0.3:  # near or equal numbers, where the sign hangs on the last digits, are rare by chance
            spread = rng.choice((9, 9, 40)) if kind == "3" else 9
            b = max(0, min(top[1], a + rng.randint(-spread, spread)))
        if op == "add":
            return Problem("+", a, b) if rng.random() < 0.5 else Problem("+", b, a)
        swap = (a < b) == (op == "sub")
        return Problem("-", b, a) if swap else Problem("-", a, b)

    def _sum(self) -> tuple[str, str, str, str, str]:
        rng = self.rng
        task = rng.choices(
            ("add 1", "add 2", "add m", "add 3", "sub 1", "sub 2", "sub m", "sub 3", "neg 1", "neg 2", "neg 3",
             "mul table", "mul 2x1"),
            (3, 10, 7, 11, 2, 12, 7, 11, 3, 7, 7, 8, 12),
        )[0]  # fmt: skip
        return self._ask(self.problem(task), task, rng.choice(("bare", "en", "zh")))

    def _ask(self, problem: Problem, task: str, style: str) -> tuple[str, str, str, str, str]:
        rng = self.rng
        language = "zh" if style == "zh" else "en"
        expression = self._expression(problem, style)
        if style == "bare":
            question = rng.choice(phrases.BARE).format(e=expression)
            answer = f"{problem.a} {problem.op} {problem.b} = {problem.result}"
        else:
            form = self._form(problem, language)
            names = {"n": rng.choice(phrases.PEOPLE[language]), "o": rng.choice(phrases.THINGS[language])}
            question = form.format(e=expression, a=problem.a, b=problem.b, **names)
            answer = f"The answer is {problem.result}." if language == "en" else f"答案是 {problem.result}。"
        return self._retouch(question, style), write_trace(problem, language), answer, task, style

    def _form(self, problem: Problem, language: str) -> str:
        rng = self.rng
        kind = rng.random()
        if kind < 0.2 and problem.result >= 0:
            return rng.choice(phrases.STORIES[language][problem.op])
        if kind < 0.35:
            return rng.choice(phrases.ASK_BY_OP[language][problem.op])
        return rng.choice(phrases.ASK[language])

    def _expression(self, problem: Problem, style: str) -> str:
        rng = self.rng
        if style == "en" and rng.random() < 0.4:
            return f"{problem.a} {rng.choice(phrases.SPOKEN['en'][problem.op])} {problem.b}"
        if style == "zh" and rng.random() < 0.4:
            return f"{problem.a}{rng.choice(phrases.SPOKEN['zh'][problem.op])}{problem.b}"
        gap = " " if rng.random() < 0.5 else ""
        return f"{problem.a}{gap}{rng.choice(phrases.SYMBOLS[problem.op])}{gap}{problem.b}"

    def _retouch(self, question: str, style: str) -> str:
        """Small slips of the keyboard: punctuation lost or of the other width, lower case, a line break at the end.

        "12+7=？" has nothing Chinese but its punctuation, which therefore stays, or the right answer would be a guess.
        """
        rng = self.rng
        has_words = style == "en" or any("\u4e00" <= character <= "\u9fff" for character in question)
        if rng.random() < 0.12 and (has_words or style == "bare"):
            question = question.rstrip("?？.。")
        elif rng.random() < 0.12 and has_words:
            question = question.replace("？", "?") if "？" in question else question.replace("?", "？")
        if rng.random() < 0.1:
            question = question.lower()
        if rng.random() < 0.04:
            question += rng.choice(("\n", " "))
        return question

    def _other(self) -> tuple[str, str, str, str, str]:
        rng = self.rng
        language = rng.choice(("en", "zh"))
        kind = rng.random()
        if kind < 0.12:
            question, table = rng.choice(phrases.GREETINGS[language]), (phrases.GREETING_TRACE, phrases.GREETING_ANSWER)
        elif kind < 0.27:
            question, table = rng.choice(phrases.IDENTITY[language]), (phrases.IDENTITY_TRACE, phrases.IDENTITY_ANSWER)
        else:
            question = self._request(language) if kind < 0.65 else self._too_hard(language)
            table = (phrases.REFUSAL_TRACE, phrases.REFUSAL_ANSWER)
        task = "chat" if kind < 0.27 else "decline"
        return self._retouch(question, language), table[0][language], table[1][language], task, language

    def _request(self, language: str) -> str:
        rng = self.rng
        if rng.random() < 0.15:  # text the tokenizer has no merges for
            if language == "zh":
                return "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 12)))
            letters = "abcdefghijklmnopqrstuvwxyz" * 2 + "     .,!?ABCDEFGHIJKLMNOPQRSTUVWXYZ"
            return "".join(rng.choice(letters) for _ in range(rng.randint(1, 30))).strip() or "hm"
        form = rng.choice(phrases.REQUESTS[language])
        return form.format(t=rng.choice(phrases.TOPICS[language]), d=rng.randint(2, rng.choice((9, 99))))

    def _too_hard(self, language: str) -> str:
        """Sums outside the model's range; their operands and wording look like the ones it can do."""
        rng = self.rng
        small, mid = rng.randint(0, 99), rng.randint(0, 999)
        big = rng.randint(1000, 10 ** rng.randint(4, 6))
        op = rng.choice(("+", "-", "*", "×"))
        gap = rng.choice(("", " "))
        expression = gap.join(
            rng.choice(
                (
                    (str(big), op, str(mid)),
                    (str(mid), op, str(big)),
                    (str(mid), rng.choice(("/", "÷")), str(small)),
                    (str(small), rng.choice("+-*"), str(rng.randint(0, 99)), rng.choice(("+", "-")), str(mid)),
                    (str(small % 10), rng.choice("+-*"), str(rng.randint(0, 9)), op, str(rng.randint(0, 9))),
                    (str(rng.randint(100, 999)), rng.choice(("*", "×")), str(rng.randint(2, 999))),
                    (str(rng.randint(10, 99)), rng.choice(("*", "×")), str(rng.randint(13, 99))),
                    (str(rng.randint(13, 99)), rng.choice(("*", "×")), str(rng.randint(10, 99))),
                    (f"{small}.{rng.randint(0, 9)}", op, str(mid)),
                )
            )
        )
        forms = phrases.ASK[language] + phrases.BARE if language == "en" else phrases.ASK[language]
        return rng.choice(forms).format(e=expression)
