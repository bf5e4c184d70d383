"""Mistakes in the training program of launch/: its text, and its runs' folders."""

from tests.mutations.mutation import Mutation

CORPUS = ("tests/jobs/test_corpus.py",)
RUN_FOLDER = ("tests/jobs/test_run_folder.py",)

MUTATIONS = [
    Mutation(
        "../launch/corpus.py",
        "context + 1)[::context]",
        "context + 1)[:: context + 1]",
        CORPUS,
    ),
    Mutation(
        "../launch/corpus.py",
        "digest()[0] < HELD_OUT_OF_256",
        "digest()[0] > HELD_OUT_OF_256",
        CORPUS,
    ),
    Mutation(
        "../launch/corpus.py",
        "held_out = text[:cut], text[cut:]",
        "held_out = text, text[cut:]",
        CORPUS,
    ),
    Mutation("../launch/corpus.py", 'part += b"\\0"', "pass", CORPUS),
    Mutation(
        "../launch/corpus.py", "path.is_file() and not hidden", "path.is_file()", CORPUS
    ),
    Mutation(
        "../launch/run_folder.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        RUN_FOLDER,
        (2,),
    ),
    Mutation(
        "../launch/run_folder.py", "last + 1 if new", "last if new", RUN_FOLDER, (2,)
    ),
    Mutation(
        "../launch/run_folder.py",
        "resume or world.restarts > 0",
        "resume",
        RUN_FOLDER,
        (2,),
    ),
    Mutation(
        "../launch/run_folder.py",
        "if not continues and (",
        "if continues and (",
        RUN_FOLDER,
        (2,),
    ),
]
