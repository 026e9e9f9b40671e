"""The author of a run: the templates, or a teacher that is loaded here or reached at a server."""

from __future__ import annotations

from dgpo_cli.core.run_dir import RunDir
from dgpo_cli.make_questions.make import Author
from dgpo_cli.make_questions.settings import MakeQuestionsSettings
from dgpo_cli.make_questions.templates import Templates


def open_author(
    settings: MakeQuestionsSettings, run: RunDir, *, key: str | None = None, at_once: int | None = None
) -> Author:
    """`key` is for the teacher's server; `at_once` requests are open in a model that is loaded here, a wave by default.

    Raises ModelError for a teacher that cannot be had.
    """
    if settings.teacher is None:
        return Templates(settings.seed)
    from dgpo_cli.agent.identity import dated
    from dgpo_cli.engine.base import Engine
    from dgpo_cli.engine.in_process.engine import InProcessEngine
    from dgpo_cli.engine.turnwise.model_server import ModelServer
    from dgpo_cli.engine.turnwise.opening import served_engine
    from dgpo_cli.make_questions.teacher import PLAIN, PlainAsker, Teacher
    from dgpo_cli.models.codec import Codec
    from dgpo_cli.models.devices import load_frozen
    from dgpo_cli.models.load import load_tokenizer
    from dgpo_cli.models.sources import resolve

    slots = settings.wave if at_once is None else min(at_once, settings.wave)
    engine: Engine
    if settings.teacher_url is not None:
        source = resolve(settings.tokenizer or settings.teacher)
        tokenizer = load_tokenizer(source)
        codec = Codec(tokenizer, dated(run, tokenizer, PLAIN))
        server = ModelServer(settings.teacher_url, settings.teacher, key)
        engine, _ = served_engine(server, codec, settings.server, max_tokens=settings.max_tokens, tokenizer=source.name)
    else:
        loaded = load_frozen(
            settings.teacher,
            device=settings.device,
            precision=settings.precision,
            eight_bit=settings.teacher_8bit,
        )
        codec = Codec(loaded.tokenizer, dated(run, loaded.tokenizer, PLAIN))
        engine = InProcessEngine(loaded.model, codec, slots=slots, capacity=settings.max_tokens)
    return Teacher(
        PlainAsker(engine, codec, at_once=slots, max_tokens=settings.max_tokens, seed=settings.seed), settings
    )
