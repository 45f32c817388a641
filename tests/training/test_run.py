"""A run in its folder: its record."""

from helpers.training import finetune_arguments, pretrain_arguments
from livt_hf.training.run import run_record


def test_the_record_holds_the_command_that_repeats_the_run(tmp_path):
    args = pretrain_arguments(tmp_path / "mae", betas=[0.9, 0.99], norm_pix_loss=False)
    assert run_record(args, 24)["command"] == (
        "livt pretrain --dataset digits --output_dir mae --hidden_size 32 --num_hidden_layers 2 --num_attention_heads "
        "2 --patch_size 2 --image_size 8 --epochs 100 --warmup_epochs 10 --base_lr 0.004 --betas 0.9 0.99 "
        "--batch_size 32 --max_steps 24 --norm_pix_loss False --decoder_hidden_size 16 --decoder_num_hidden_layers 1 "
        "--decoder_num_attention_heads 2"
    )
    args = finetune_arguments(tmp_path / "model", pretrained=str(tmp_path / "mae"), loss="ce")
    command = run_record(args, 24, {"max_grad_norm": 1.0, "disable_tqdm": True})["command"]
    assert command.startswith("livt finetune --dataset digits --output_dir model ")
    assert command.endswith(" --pretrained mae --loss ce --drop_path 0.3 --crop_ratio 1 --max_grad_norm 1")
