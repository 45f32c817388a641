"""The `livt` command as tests call it: tiny runs, and the one line of an error."""

from livt_hf.cli import main

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
TRAINING = {**SIZES, "batch_size": 4, "max_steps": 1, "num_workers": 0}
STAGE = {"pretrain": {**TRAINING, **DECODER}, "finetune": {**TRAINING, "rand_augment": "none"}}


def words(*argv, **options):
    """A command line; lists and ``None`` (no such option) are understood."""
    line = [str(word) for word in argv]
    for name, value in options.items():
        if value is not None:
            line += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return line


def run_stage(stage, data, output_dir, **options):
    return main(words(stage, **{**STAGE[stage], "dataset": data, "output_dir": output_dir, **options}))


def the_error(capsys, status):
    """The one line on stderr, without its "error: "; nothing else may be there."""
    text = capsys.readouterr().err
    assert status == 2
    assert text.startswith("error: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[len("error: ") : -1]


def the_error_after_a_bar(capsys, status):
    """As `the_error`, but where progress was shown before: on a line of its own, the last one."""
    text = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in text
    lines = text.split("\n")
    assert lines[-1] == ""
    assert [line for line in lines if "error: " in line] == [lines[-2]], text
    assert lines[-2].startswith("error: "), text
    return lines[-2][len("error: ") :]
