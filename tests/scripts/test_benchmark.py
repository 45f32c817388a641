"""The benchmark names what a step spends its time on, and measures what it says."""

import argparse
import json
import types

import numpy as np
import PIL.Image
import pytest
import torch
from torch.autograd import DeviceType

import benchmark
from benchmarks import images, loading, profiling, steps, timing, whole_command

ELEMENTWISE = "void at::native::vectorized_elementwise_kernel<4, at::native::{}, std::array<char*, 2ul> >(int, ...)"
# Names of kernels as in public profiles of H100, H200, A100 and L4, and from torch's sources; arguments are shortened
KERNELS = {
    "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT": "linear layers",
    "nvjet_tst_64x64_64x8_2x1_v_bz_splitK_TNT": "linear layers",
    "nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_NNT": "linear layers",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_"
    "cublas": "linear layers",
    "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_32x3_nn_align4>(...)": "linear layers",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn": "linear layers",
    "ampere_sgemm_64x64_tn": "linear layers",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>(...)": "linear layers",
    "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>(...)": "linear layers",
    "triton_tem_fused_addmm_3": "linear layers",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::bfloat16_t>"
    ">(pytorch_flash::Flash_fwd_params)": "attention",
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64>>(...)": "attention",
    "void pytorch_flash::flash_bwd_convert_dq_kernel<Flash_bwd_kernel_traits<64, 128, 128, 8>>(...)": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128_1x4x1_cga1x1x1": "attention",
    "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float>::Params)": "attention",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, "
    "FusedAdamMathFunctor<float, 4, (ADAM_MODE)1, false>>(...)": "optimizer",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>(...)": "layer norm",
    "void at::native::(anonymous namespace)::layer_norm_grad_input_kernel_vectorized<float, float>(...)": "layer norm",
    "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float, float, 32u>(...)": "layer norm",
    "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float, float, false>(...)": "layer norm",
    ELEMENTWISE.format("GeluCUDAKernelImpl(at::TensorIteratorBase&, at::native::GeluType)::{lambda()#1}"): "GELU",
    ELEMENTWISE.format("GeluBackwardCUDAKernelImpl(at::TensorIteratorBase&, at::native::GeluType)"): "GELU",
    ELEMENTWISE.format("bfloat16_copy_kernel_cuda(at::TensorIteratorBase&)"): "copies and casts",
    "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda"
    "(at::TensorIteratorBase&)::{lambda()#3}>(...)": "copies and casts",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<...>": "copies and casts",
    "Memcpy HtoD (Pinned -> Device)": "copies and casts",
    ELEMENTWISE.format("CUDAFunctor_add<float>"): "elementwise",
    ELEMENTWISE.format("FillFunctor<float>"): "elementwise",
    ELEMENTWISE.format(
        "AUnaryFunctor<float, float, float, at::native::binary_internal::MulFunctor<float>>"
    ): "elementwise",
    "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4>(...)": "elementwise",
    "Memset (Device)": "elementwise",
    "void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, bool)": "indexing and sorting",
    "void at::native::_scatter_gather_elementwise_kernel<128, 8>(...)": "indexing and sorting",
    "void at::native::bitonicSortKVInPlace<2, -1, 16, 16, float, long>(...)": "indexing and sorting",
    "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, func_wrapper_t<float>>>": "reductions",
    "triton_per_fused_add_native_layer_norm_split_45": "fused by the compiler",
    "triton_poi_fused__scaled_dot_product_flash_attention_backward_gelu_2": "fused by the compiler",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "the rest",
}


@pytest.mark.parametrize("name", KERNELS, ids=range(len(KERNELS)))
def test_kernels_are_recognized_by_name(name):
    assert profiling.kind_of(name, profiling.CUDA_KERNELS) == KERNELS[name]


def test_only_kernels_count_on_the_time_line_of_the_device():
    def event(name, time, device=DeviceType.CUDA, annotation=False):
        return types.SimpleNamespace(
            name=name, device_type=device, is_user_annotation=annotation, self_device_time_total=time
        )

    events = [
        event("ampere_sgemm_64x64_tn", 3),
        event("aten::mm", 3, device=DeviceType.CPU),  # launched that kernel, and has its time too
        event("Optimizer.step#AdamW.step", 5, annotation=True),
        event("Command Buffer Full", 7),
        event("Memset (Device)", 1),
    ]
    found = list(profiling.cuda_kernels(events))
    assert found == [("ampere_sgemm_64x64_tn", 3), ("Memset (Device)", 1)]
    assert profiling.shares(found, profiling.CUDA_KERNELS) == {"linear layers": 0.75, "elementwise": 0.25}


def arguments(**values):
    sizes = {"model_size": "ti", "image_size": 32, "patch_size": 8, "batch_size": 4, "dtype": "bf16"}
    return argparse.Namespace(**{**sizes, "steps": 1, "repeats": 1, "compile": False, **values})


@pytest.mark.parametrize("build", [steps.pretraining_sides, steps.finetuning_sides])
def test_at_most_15_percent_of_a_real_step_are_the_rest(build):
    sides = build(arguments(batch_size=16), "cpu", ("ours",))
    shares, operators = profiling.profile_step(sides["ours"].step, "cpu")
    assert shares["the rest"] <= 0.15
    assert sum(shares.values()) == pytest.approx(1)
    assert operators > 1000


def test_timms_classifier_is_ours_in_size_and_arithmetic():
    """Ours has no key bias, timm's has one; the pooled features are normalized in both."""
    sides = steps.finetuning_sides(arguments(), "cpu", ("timm", "transformers"))
    assert sides["timm"].flops == pytest.approx(sides["transformers"].flops, rel=0.02)


def test_a_comparison_gives_ratios_to_every_reference():
    speeds = {
        "transformers": timing.Speed([3.0, 6.0, 3.0], 30, None),
        "timm": timing.Speed([1.5, 1.5, 1.5], 30, None),
        "ours": timing.Speed([1.0, 2.0, 1.0], 30, host_ms=1.5),  # its second turn was slow, as transformers'
    }
    figures = benchmark.speed_figures(speeds, "ours", ("transformers", "timm"))
    assert figures == {"images_per_second": 30.0, "ratio": 3.0, "ratio_to_timm": 1.5, "host_ms_a_step": 1.5}
    figures |= {"gflop_an_image": 2.0, "share_of_peak": 0.5, "mib_in_a_step": 100}
    assert benchmark.side_words(figures, ("transformers", "timm")) == (
        "    30.0 images/s, 3.00 x transformers, 1.50 x timm, 2.0 GFLOP an image, 0.06 TFLOP/s, 50% of the peak, "
        "100 MiB in a step, 1.5 ms of the host a step"
    )


def test_the_peak_counts_two_operations_per_product(monkeypatch):
    monkeypatch.setattr(timing, "cpu_turn", lambda step, count: (0.5, None))
    assert timing.matmul_peak("cpu", torch.float32, size=16) == 2 * 16**3 / 0.5


def test_photos_do_not_depend_on_the_number_of_threads(tmp_path):
    files = images.write_images(tmp_path / "some", 3, image_size=32)
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    with PIL.Image.open(files[2]) as image:
        assert np.array_equal(np.asarray(image), images.photo(2, 32, 32))
    (photo,) = images.write_images(tmp_path / "large", 1, image_size=224)
    assert 0.3 < photo.stat().st_size / (500 * 375) < 0.4  # bytes per pixel, as real photographs


def test_small_images_are_loaded_by_all_sides(tmp_path):
    files = images.write_images(tmp_path / "images" / "train", 8, image_size=16)
    sides = loading.loading_sides(files, tmp_path, image_size=16, batch_size=4)
    assert list(sides) == ["pretraining, PIL reference", "pretraining, ours", "fine-tuning, timm", "fine-tuning, ours"]
    for loader in sides.values():
        assert [tuple(pixels.shape) for pixels in loader(2, 0)] == [(4, 3, 16, 16)] * 2
    turns = loading.speed_per_core(sides, 2, repeats=3)
    assert all(len(speeds) == 3 and min(speeds) > 0 for speeds in turns.values())
    assert loading.speed_with_workers(sides["pretraining, ours"], 2, num_workers=1) > 0


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_speed_of_a_command_lies_between_its_first_and_last_line(stage, tmp_path, monkeypatch):
    clock = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(whole_command.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(whole_command, "pretrain", lambda args: log_losses(args, [2, 4, 6]))
    monkeypatch.setattr(whole_command, "finetune", lambda args, more: log_losses(args, [2, 4, 6]))
    options = {"dataset": "d", "output_dir": str(tmp_path), "batch_size": 8}
    assert whole_command.command_speed(stage, options) == 4 * 8 / 4.0


def log_losses(args, logged):
    log = whole_command.MetricsLog(whole_command.Path(args.output_dir))
    for step in logged:
        log.write({"step": step, "loss": 1.0})
        log.write({"step": step, "eval_accuracy": 1.0})


def test_results_of_a_device_have_its_name():
    assert benchmark.results_file("cpu") == benchmark.RESULTS / "cpu.json"
    assert benchmark.results_file("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_the_quoted_results_are_there():
    """The READMEs quote these."""
    figures = json.loads((benchmark.RESULTS / "cpu.json").read_text())["figures"]
    assert figures["loader"]["pretraining, ours"]["ratio"] > 1
    assert figures["mae"]["ours"]["images_per_second"] > 0
    assert figures["finetune"]["ours"]["ratio"] > 0
