"""Checks of a run before its folder is made and a model is loaded.

`--dry-run` stops after it and the run itself goes on from it. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from dgpo_cli.agent.settings import RolloutSettings
from dgpo_cli.core.device import Precision
from dgpo_cli.core.extras import require
from dgpo_cli.core.progress import Say
from dgpo_cli.core.types import Question
from dgpo_cli.engine.registry import IN_PROCESS, require_engine
from dgpo_cli.errors import ConfigError, InputError
from dgpo_cli.formats.protocol import Protocol
from dgpo_cli.models.codec import Codec
from dgpo_cli.models.shapes import shape_of
from dgpo_cli.models.sources import load_protocol
from dgpo_cli.models.tokenizer_file import require_same_tokenizer, tokenizer_file
from dgpo_cli.planning.models import longest_episode, readable, rolled_out
from dgpo_cli.planning.writing import Writing, fitted_wave, prompt_tokens, weights_bytes
from dgpo_cli.qa_sets import read_questions
from dgpo_cli.retrieval.open import check_index
from dgpo_cli.rewards import registry as rewards
from dgpo_cli.training.ingredients import (
    common_text,
    kd_objective,
    needs_teacher,
    rl_objective,
    searches,
    training_questions,
)
from dgpo_cli.training.settings import KDSettings, RLSettings
from dgpo_cli.training.sizes import jobs, memory
from dgpo_cli.training.sizes.jobs import Account, Room, Sizes, Training, training_job
from dgpo_cli.training.source import require_batch
from dgpo_cli.training.teacher.settings import DistillDataSettings
from dgpo_cli.training.teacher.trajectory_files import read_trajectories, require_known_tokens

_log = logging.getLogger(__name__)

_SHORTEST = 256  # questions among which the shortest prompt is looked for where none fits


def check_rl(settings: RLSettings, *, given: Collection[str] = (), say: Say | None = None, processes: int = 1) -> Sizes:
    """Check a run before a model is loaded; returns the sizes that were fitted to the memory.

    `given` are the settings that the user named, which are never fitted. Raises DgpoError.
    """
    objective = rl_objective(settings)
    assert settings.index is not None
    check_index(settings.index)
    rewards.weighted(settings.reward)
    student = rolled_out(settings.student)
    tokenizer, text = tokenizer_file(student), load_protocol(student)
    if needs_teacher(objective):
        assert settings.teacher is not None
        teacher = readable(settings.teacher)
        require_same_tokenizer(tokenizer, tokenizer_file(teacher))
        text = common_text(text, load_protocol(teacher))
    questions, validation = training_questions(settings)
    require_batch(questions, settings.batch_size)
    if not validation and say is not None:
        say("no question is held out, so that the last weights are kept: give --eval-data, or 20 questions and more")
    longest = longest_episode(settings.rollout, settings.student)
    codec = Codec(tokenizer, text[0])
    check_prompts([*questions, *validation], codec, settings.rollout, longest, say)
    return sizes_of(settings, episode=longest, rolls=True, given=given, say=say, processes=processes)


def check_kd(settings: KDSettings, *, given: Collection[str] = (), say: Say | None = None, processes: int = 1) -> Sizes:
    """As `check_rl`. The trajectories are read, so that a bad line is found before a model is loaded."""
    objective = kd_objective(settings)
    if settings.index is not None:
        check_index(settings.index)
    elif settings.rerank.model is not None:
        raise ConfigError("rerank.model has no effect where nothing is searched", hint="give --index and --eval-data")
    data = read_trajectories(Path(settings.trajectories))
    if not data.trajectories:
        raise ConfigError(f"{data.path} holds no trajectory", hint="make some with `dgpo distill-data`")
    writes = searches(objective) or settings.eval_data is not None
    student = (rolled_out if writes else readable)(settings.student)
    tokenizer = tokenizer_file(student)
    codec = Codec(tokenizer, Protocol.from_json(data.protocol))
    if data.tokenizer not in (None, codec.digest):
        raise InputError(
            f"{data.path} holds tokens of another tokenizer than the one of {settings.student}",
            hint="train a student of the teacher's family, or make new data: `dgpo distill-data`",
        )
    if needs_teacher(objective):
        assert settings.teacher is not None
        teacher = (rolled_out if objective.teacher_writes else readable)(settings.teacher)
        require_same_tokenizer(tokenizer, tokenizer_file(teacher))
        require_known_tokens(data, teacher)
    require_known_tokens(data, student)
    if data.unwritten:
        _log.warning(
            "%s: %d trajectories hold no token that a model wrote and are left out, the first on line %d",
            data.path, len(data.unwritten), data.unwritten[0],
        )  # fmt: skip
    longest = max(len(trajectory.token_ids) for trajectory in data.trajectories)
    episode = longest_episode(settings.rollout, settings.student)
    asked = {t.question.key: t.question for t in data.trajectories} if searches(objective) else {}
    if settings.eval_data is not None:
        validation = read_questions(Path(settings.eval_data))[: settings.eval_limit]
        asked |= {question.key: question for question in validation}
    if asked:
        check_prompts(list(asked.values()), codec, settings.rollout, episode, say)
    return sizes_of(
        settings, longest, episode=episode, rolls=searches(objective), given=given, say=say, processes=processes
    )


def check_distill(
    settings: DistillDataSettings,
    questions: Sequence[Question],
    *,
    given: Collection[str] = (),
    say: Say | None = None,
) -> int:
    """As `check_rl`, for a teacher that writes; returns how many episodes are to be open at once."""
    require_engine(settings.engine)
    check_index(settings.index)
    name = settings.tokenizer or settings.teacher
    capacity = longest_episode(settings.rollout, name)
    codec = _codec(name, settings.format)
    check_prompts(questions, codec, settings.rollout, capacity, say)
    wave = settings.rollout.wave
    if settings.teacher_url is not None or settings.written or settings.engine != IN_PROCESS:
        return wave
    return _wave(
        _writing(settings.teacher, settings.rollout, questions, codec, settings.device, settings.precision,
                 eight_bit=settings.teacher_8bit),
        min(wave, len(questions) * settings.samples), settings.device, wave,
        given="rollout.wave" in given, setting="-o rollout.wave=", say=say,
    )  # fmt: skip


def check_eval(
    model: str,
    rollout: RolloutSettings,
    questions: Sequence[Question],
    *,
    device: str,
    loaded: bool,
    samples: int = 1,
    precision: Precision = "auto",
    given: bool = False,
    say: Say | None,
    told: bool = False,
    form: str | None = None,
) -> int:
    """As `check_distill`, for a model that is evaluated; `loaded` in this process, not by another engine.

    `given` says whether the user named the number of questions at once, `told` whether to say what memory they take.
    """
    codec = _codec(model, form)
    check_prompts(questions, codec, rollout, longest_episode(rollout, model), say)
    if not loaded:
        return rollout.wave
    writing = _writing(model, rollout, questions, codec, device, precision)
    at_once = min(rollout.wave, len(questions) * samples)
    found = _wave(writing, at_once, device, rollout.wave, given=given, setting="--batch-size ", say=say)
    if told and say is not None:
        say(writing.told(min(found, at_once)))
    return found


def check_chat(
    model: str, rollout: RolloutSettings, *, device: str, precision: Precision = "auto", loaded: bool = True,
    given: bool = False, say: Say | None = None,
) -> int:  # fmt: skip
    """As `check_distill`, for `rollout.wave` chats at once; if not `loaded`, a server runs the model."""
    codec = _codec(model)
    check_prompts([Question("", "", (), "")], codec, rollout, longest_episode(rollout, model))
    if not loaded:
        return rollout.wave
    writing = _writing(model, rollout, (), codec, device, precision)
    return _wave(writing, rollout.wave, device, rollout.wave, given=given, setting="-o max_episodes=", say=say)


def check_asked(
    model: str, wave: int, max_tokens: int, *, device: str, precision: Precision, eight_bit: bool, say: Say | None
) -> int:
    """As `check_distill`, for a model that answers plain requests of up to `max_tokens`, `wave` of them at once."""
    rollout = RolloutSettings(max_turns=0, max_tokens=max_tokens, wave=wave)
    writing = _writing(model, rollout, (), _codec(model), device, precision, eight_bit=eight_bit)
    room = Room.on(device)
    return fitted_wave(writing, wave, room, given=False, setting="-o wave=", length="-o max_tokens=", say=say)


def _writing(
    name: str,
    rollout: RolloutSettings,
    questions: Sequence[Question],
    codec: Codec,
    device: str,
    precision: Precision,
    *,
    eight_bit: bool = False,
) -> Writing:
    return Writing.of(
        name,
        rollout,
        device=Room.on(device).device,
        capacity=longest_episode(rollout, name),
        eight_bit=eight_bit,
        precision=precision,
        prompt=prompt_tokens(questions, len(codec.prompt_ids("").ids)),
        file=weights_bytes(rolled_out(name)),
    )


def _wave(
    writing: Writing, episodes: int, device: str, wave: int, *, given: bool, setting: str, say: Say | None
) -> int:
    """`wave`, or the fewer of `episodes` that fit."""
    found = fitted_wave(writing, episodes, Room.on(device), given=given, setting=setting, say=say)
    return wave if found == episodes else found


def _codec(model: str, form: str | None = None) -> Codec:
    """`form` is the format of a model that was trained with none."""
    source = readable(model)
    return Codec(tokenizer_file(source), load_protocol(source, form)[0])


def check_prompts(
    questions: Sequence[Question],
    codec: Codec,
    rollout: RolloutSettings,
    capacity: int,
    say: Say | None = None,
) -> int:
    """Count and report prompts that are too long. Raises ConfigError if all are, or if no prompt can fit.

    A token is at least a byte, and a byte becomes four where a look-alike of a tag is escaped: only prompts that may be
    too long are turned into tokens.
    """
    limit = min(rollout.max_prompt_tokens, capacity - 1)
    frame = len(codec.prompt_ids("").ids)
    sizes = {question.key: 4 * len(question.text.encode(errors="surrogatepass")) + 2 for question in questions}
    long = sorted((q for q in questions if frame + sizes[q.key] > limit), key=lambda q: sizes[q.key])
    if frame > limit:
        long = long[:_SHORTEST]
    if not long:
        return 0
    counts = [len(codec.prompt_ids(question.text).ids) for question in long]
    too_long = sum(count > limit for count in counts)
    setting = f"rollout.max_prompt_tokens = {rollout.max_prompt_tokens}"
    if limit < rollout.max_prompt_tokens:
        setting = f"an episode has {capacity} tokens"
    if frame > limit or too_long == len(questions):
        raise ConfigError(
            f"no prompt fits: the shortest has {min(counts)} tokens, and {limit} are allowed ({setting})",
            hint=f"give -o rollout.max_prompt_tokens={min(counts)} or more, and rollout.max_tokens above it"
            if limit == rollout.max_prompt_tokens
            else "raise -o rollout.max_tokens, or take a model with a longer context",
        )
    if too_long and say is not None:
        say(f"{too_long} of {len(questions)} prompts are longer than {limit} tokens ({setting}): they get no answer")
    return too_long


def sizes_of(
    settings: Training,
    written: int = 0,
    *,
    episode: int,
    rolls: bool,
    given: Collection[str],
    say: Say | None,
    processes: int,
) -> Sizes:
    """Sizes reduced to the free memory, with a line that reports it. Raises ConfigError.

    Training sequences have at most `written` tokens or, where the run `rolls` them out itself, `episode` tokens.
    """
    if settings.lora.rank is not None:
        require("peft", "lora", "lora.rank")
        settings.lora.require_maps(shape_of(settings.student).linear_maps)
    if settings.fit:  # tried out with the models themselves
        return {}
    room = Room.on(settings.device, settings.fit_gib, processes)

    def longest(tried: Training) -> int:
        return max(written, min(episode, tried.rollout.max_tokens) if rolls else 0)

    def parts(tried: Training) -> dict[str, float]:
        job = training_job(tried, student=settings.student, device=room.device, longest=longest(tried))
        return memory.in_process(replace(job, capacity=min(job.capacity, episode)))

    found = Account(parts, longest, room, given).fitted(settings)
    if found and say is not None:
        say(jobs.told(found, room))
    return found
