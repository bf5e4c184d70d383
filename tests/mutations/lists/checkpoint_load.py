"""Mistakes in which checkpoint is loaded, into what, and who is told of an error."""

from tests.mutations.mutation import Mutation, mistakes

API = "tests/checkpoint/test_api.py"
LOAD = "tests/checkpoint/test_load.py"
NAMES = "tests/checkpoint/test_names.py"
HOSTILE = "tests/checkpoint/test_hostile.py"
FORMAT = "tests/checkpoint/test_format.py"
READER = "tests/checkpoint/test_reader.py"
TARGETS = "tests/checkpoint/test_load_targets.py"

MUTATIONS = [
    *mistakes(
        "checkpoint/open_checkpoint.py",
        (LOAD, API, TARGETS),
        [
            ("return sorted(saves, reverse=True)", "return sorted(saves)"),
            ("if step not in (None, save.step):", "if False:"),
            ("if None not in problems:", "if False:"),
            ("on_all_ranks(comm.all_gather_bytes, failure, reader.verify)", "pass"),
            ("if not saves and step is None:", "if not saves:"),
        ],
    ),
    *mistakes(
        "checkpoint/open_checkpoint.py",
        (READER, "tests/checkpoint/test_leftovers.py"),
        [
            ("if len(known) < comm.size:", "if False:"),
            ("bool(r.problems) and r.problems[f] is None", "bool(r.problems)"),
        ],
    ),
    *mistakes(
        "checkpoint/targets.py",
        (LOAD, NAMES, FORMAT, TARGETS),
        [
            ("        _check_sampler(contents.manifest, into.sampler)", "        pass"),
            (
                'surplus.kind == "parameters" and surplus.path not in texts',
                "False",
            ),
            ("and len(set(map(_class_name, pair))) > 1:", "and False:"),
            ("_refuse_accumulated(contents.manifest)", "pass"),
            ("if not is_replaceable(model, path):", "if False:"),
            ("problem is not None and (shape or not may_be_number(saved))", "False"),
        ],
    ),
    Mutation(
        "checkpoint/targets.py",
        "and counts[path.dotted] == 1",
        "",
        (LOAD, NAMES),
        (2,),
        equivalent="one saved array is too few for two parameters, so that one of them "
        "is missing in either case",
    ),
    *mistakes(
        "checkpoint/targets.py",
        (HOSTILE, "tests/checkpoint/test_arguments.py", API, TARGETS),
        [("if sampler.state_dict() != before:", "if False:")],
    ),
    *mistakes(
        "checkpoint/targets.py",
        ("tests/optim/test_state_values.py",),
        [("        _new_state(contents, into.optimizer, targets)", "        pass")],
    ),
    *mistakes(
        "checkpoint/snapshot.py",
        (API, "tests/checkpoint/test_save.py"),
        [
            ("replicated |= scalars(state)", "pass"),
            ("checksum=0 if shape else zlib.crc32(raw(array).data)", "checksum=0"),
            ("if path not in by_path]", "if False]"),
            ("if not state.plan.sharded:", "if False:"),
        ],
    ),
    *mistakes(
        "checkpoint/snapshot.py",
        ("tests/checkpoint/test_arguments.py",),
        [
            ("allow_nan=False", "allow_nan=True"),
            ("are_text and all(map(_has_text_keys, value.values()))", "are_text"),
        ],
        ranks=(1,),
    ),
    *mistakes(
        "checkpoint/collective.py",
        ("tests/checkpoint/test_collective.py", "tests/checkpoint/test_faults.py"),
        [
            ("    if any(problems):", "    if problem:"),
            ("    except Exception as error:", "    except ValueError as error:"),
            ("    return [msgspec.convert(report, kind) for", "    return [report for"),
        ],
    ),
    *mistakes(
        "checkpoint/api.py",
        ("tests/checkpoint/test_async_save.py", LOAD, HOSTILE),
        [
            ("async_save.wait_for_all()", "pass"),
            ("if set(before) <= set(saves):", "if True:"),
            ("    if not request.missing_ok:", "    if False:"),
            ("for reason in opened.skipped if", "for reason in () if"),
        ],
    ),
    Mutation(
        "checkpoint/api.py",
        "        job.copy_data()\n",
        "        pass\n",
        ("tests/checkpoint/test_async_save.py",),
        (2,),
        equivalent="an array that is being written is not overwritten by a step: MLX "
        "counts its views. With copies the thread that writes frees no memory of MLX.",
    ),
    *mistakes(
        "checkpoint/manifest.py",
        ("tests/checkpoint/test_manifest.py",),
        [
            ("sort_keys=True, ", ""),
            (", allow_nan=False)", ")"),
            ('pattern=r"\\A[A-Za-z0-9][', 'pattern=r"\\A[A-Za-z0-9./]['),
            ("_Count = Annotated[int, Meta(ge=0,", "_Count = Annotated[int, Meta("),
        ],
        ranks=(),
    ),
]
