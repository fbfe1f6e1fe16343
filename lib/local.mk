# libcomba. Rules for its version (libtool's current:revision:age), at each release:
#   code changed, interface not: revision + 1; functions added: current + 1, revision 0, age + 1;
#   a function removed or its meaning changed: current + 1, revision 0, age 0. The soname is libcomba.so.(current - age).
COMBA_LIBRARY_VERSION = 0:0:0

include_HEADERS = lib/comba.h

library_sources = \
	lib/core/backend.c \
	lib/core/backend.h \
	lib/core/depth.c \
	lib/core/device_failure.c \
	lib/core/device_failure.h \
	lib/core/device_memory.c \
	lib/core/device_memory.h \
	lib/core/file.c \
	lib/core/file.h \
	lib/core/gemm.c \
	lib/core/gemm.h \
	lib/core/graph.c \
	lib/core/graph.h \
	lib/core/graph_private.h \
	lib/core/host_device.h \
	lib/core/op.h \
	lib/core/lanes.c \
	lib/core/parallel.h \
	lib/core/vector.h \
	lib/core/plan.c \
	lib/core/random.h \
	lib/core/real.h \
	lib/core/recompute.c \
	lib/core/shape.c \
	lib/core/status.c \
	lib/core/status.h \
	lib/core/tensor.c \
	lib/core/threads.c \
	lib/core/version.c \
	lib/data/augment.c \
	lib/data/augment.h \
	lib/data/cifar.c \
	lib/data/dataset.c \
	lib/data/dataset.h \
	lib/data/dataset_parts.h \
	lib/data/fingerprint.c \
	lib/data/fingerprint.h \
	lib/data/folder.c \
	lib/data/idx.c \
	lib/data/image.c \
	lib/data/image.h \
	lib/data/image_codec.h \
	lib/data/image_jpeg.c \
	lib/data/image_png.c \
	lib/data/image_write.c \
	lib/data/image_write.h \
	lib/data/loader.c \
	lib/data/loader.h \
	lib/data/order.h \
	lib/data/prepare.c \
	lib/data/preprocess.c \
	lib/data/preprocess.h \
	lib/data/read_at.c \
	lib/data/read_at.h \
	lib/data/records.c \
	lib/data/resize.c \
	lib/data/resize.h \
	lib/data/split.c \
	lib/data/tokens.c \
	lib/data/tokens.h \
	lib/mixers/attention.h \
	lib/mixers/comba.c \
	lib/mixers/delta_heads.c \
	lib/mixers/delta_heads.h \
	lib/mixers/delta_net.c \
	lib/mixers/expanded_heads.c \
	lib/mixers/expanded_heads.h \
	lib/mixers/gated_deltanet.c \
	lib/mixers/gla.c \
	lib/mixers/hgrn2.c \
	lib/mixers/memora.c \
	lib/mixers/memory_heads.c \
	lib/mixers/memory_heads.h \
	lib/mixers/mamba2.c \
	lib/mixers/mesa_net.c \
	lib/mixers/meta_la.c \
	lib/mixers/mlstm.c \
	lib/mixers/kda.c \
	lib/mixers/linear_attn.c \
	lib/mixers/projection.c \
	lib/mixers/projection.h \
	lib/mixers/mixer.h \
	lib/mixers/miras.c \
	lib/mixers/miras.h \
	lib/mixers/moneta.c \
	lib/mixers/recurrence.c \
	lib/mixers/recurrence.h \
	lib/mixers/retnet.c \
	lib/mixers/rwkv7.c \
	lib/mixers/s4d.c \
	lib/mixers/simple_gla.c \
	lib/mixers/table.c \
	lib/mixers/titans.c \
	lib/mixers/transformer.c \
	lib/mixers/ttt.c \
	lib/mixers/ttt.h \
	lib/mixers/ttt_linear.c \
	lib/mixers/ttt_mlp.c \
	lib/mixers/yaad.c \
	lib/model/build.c \
	lib/model/build.h \
	lib/model/config.c \
	lib/model/config.h \
	lib/model/decoder.c \
	lib/model/field.c \
	lib/model/field.h \
	lib/model/json.c \
	lib/model/json.h \
	lib/model/language.c \
	lib/model/mixer_handle.c \
	lib/model/model.c \
	lib/model/model_private.h \
	lib/model/optimizer.c \
	lib/model/orthogonal.c \
	lib/model/orthogonal.h \
	lib/model/parameters.c \
	lib/model/parameters.h \
	lib/model/pickle.c \
	lib/model/pickle.h \
	lib/model/pictures.c \
	lib/model/pictures.h \
	lib/model/run.c \
	lib/model/safetensors.c \
	lib/model/safetensors.h \
	lib/model/safetensors_convert.c \
	lib/model/safetensors_write.c \
	lib/model/schema.c \
	lib/model/schema.h \
	lib/model/vision.c

# Compiled once for each variant, see lib/core/real.h.
kernel_sources = \
	lib/ops/activation.c \
	lib/ops/adamw.c \
	lib/ops/add.c \
	lib/ops/axis_taps.h \
	lib/ops/bonus.c \
	lib/ops/bounded_gate.c \
	lib/ops/channel_decay.c \
	lib/ops/channels_to_tokens.c \
	lib/ops/closed_loop.c \
	lib/ops/closed_loop.h \
	lib/ops/complement.c \
	lib/ops/constant.c \
	lib/ops/conversion.h \
	lib/ops/convolution.c \
	lib/ops/convolution_direct.c \
	lib/ops/convolution_direct.h \
	lib/ops/cross_entropy.c \
	lib/ops/decay_gate.c \
	lib/ops/divide.c \
	lib/ops/dpfp.c \
	lib/ops/drop_path.c \
	lib/ops/dropout.c \
	lib/ops/embedding.c \
	lib/ops/exponential_gate.c \
	lib/ops/extent.h \
	lib/ops/gated_rms_norm.c \
	lib/ops/gelu.h \
	lib/ops/gradient.h \
	lib/ops/gradient_clip.c \
	lib/ops/grid_move.h \
	lib/ops/grid_order.h \
	lib/ops/head_skip.c \
	lib/ops/hedgehog.c \
	lib/ops/l2_norm.c \
	lib/ops/last_token.c \
	lib/ops/layer_norm.c \
	lib/ops/lerp.c \
	lib/ops/linear.c \
	lib/ops/list.h \
	lib/ops/max_pool.c \
	lib/ops/mean_pool.c \
	lib/ops/normalized_read.c \
	lib/ops/product.c \
	lib/ops/narrow.c \
	lib/ops/ops.h \
	lib/ops/patch_embedding.c \
	lib/ops/position_embedding.c \
	lib/ops/prepare_pictures.c \
	lib/ops/rms_norm.c \
	lib/ops/rotary.c \
	lib/ops/rows.h \
	lib/ops/scan_merge.c \
	lib/ops/scan_order.c \
	lib/ops/sequence_pool.c \
	lib/ops/sigmoid_gate.c \
	lib/ops/sequences.h \
	lib/ops/short_convolution.c \
	lib/ops/split.c \
	lib/ops/sum_norm.c \
	lib/ops/swiglu.c \
	lib/ops/table.c \
	lib/ops/time_step.c \
	lib/ops/token_shift.c \
	lib/ops/token_scale.c \
	lib/ops/widen.c \
	lib/ops/window.h \
	lib/scan/attention.c \
	lib/scan/attention_block.h \
	lib/scan/attention_decode.c \
	lib/scan/chunk_product.c \
	lib/scan/chunk_product.h \
	lib/scan/delta_rule.c \
	lib/scan/delta_rule.h \
	lib/scan/delta_rule_chunk.c \
	lib/scan/delta_rule_recurrent.c \
	lib/scan/diagonal_decay.c \
	lib/scan/diagonal_decay.h \
	lib/scan/diagonal_decay_chunk.c \
	lib/scan/diagonal_decay_recurrent.c \
	lib/scan/inner_loss.c \
	lib/scan/inner_loss.h \
	lib/scan/memory.c \
	lib/scan/memory.h \
	lib/scan/memory_linear.c \
	lib/scan/memory_mapped.c \
	lib/scan/memory_scan.c \
	lib/scan/memory_mlp.c \
	lib/scan/memory_mlp.h \
	lib/scan/memory_mlp_chunk.c \
	lib/scan/memory_mlp_map.c \
	lib/scan/memory_mlp_map.h \
	lib/scan/mesa.c \
	lib/scan/mesa.h \
	lib/scan/mesa_solve.c \
	lib/scan/s4d.c \
	lib/scan/normed_loss.c \
	lib/scan/normed_loss.h \
	lib/scan/scalar.h \
	lib/scan/scalar_decay.c \
	lib/scan/scalar_decay.h \
	lib/scan/scalar_decay_chunk.c \
	lib/scan/scalar_decay_recurrent.c \
	lib/scan/scan.h \
	lib/scan/unit_lower.c

KERNEL_CFLAGS = $(COMBA_OPTIMIZE_KERNELS) -fno-math-errno -fno-trapping-math -ffp-contract=fast $(COMMON_CFLAGS)

noinst_LTLIBRARIES += lib/libkernels-baseline.la
lib_libkernels_baseline_la_SOURCES = $(kernel_sources)
lib_libkernels_baseline_la_SHORTNAME = baseline
lib_libkernels_baseline_la_CPPFLAGS = $(AM_CPPFLAGS) -DCOMBA_VARIANT_NAME=baseline
lib_libkernels_baseline_la_CFLAGS = $(KERNEL_CFLAGS)
kernel_libraries = lib/libkernels-baseline.la

lib_libkernels_v3_la_SOURCES = $(kernel_sources)
lib_libkernels_v3_la_SHORTNAME = v3
lib_libkernels_v3_la_CPPFLAGS = $(AM_CPPFLAGS) -DCOMBA_VARIANT_NAME=v3
lib_libkernels_v3_la_CFLAGS = $(KERNEL_CFLAGS) -march=x86-64-v3
lib_libkernels_v4_la_SOURCES = $(kernel_sources)
lib_libkernels_v4_la_SHORTNAME = v4
lib_libkernels_v4_la_CPPFLAGS = $(AM_CPPFLAGS) -DCOMBA_VARIANT_NAME=v4
lib_libkernels_v4_la_CFLAGS = $(KERNEL_CFLAGS) -march=x86-64-v4 -mprefer-vector-width=512
if X86_VARIANTS
noinst_LTLIBRARIES += lib/libkernels-v3.la lib/libkernels-v4.la
kernel_libraries += lib/libkernels-v3.la lib/libkernels-v4.la
endif

# The operators in double precision, for tests.
check_LTLIBRARIES += lib/libkernels-oracle.la
lib_libkernels_oracle_la_SOURCES = $(kernel_sources)
lib_libkernels_oracle_la_SHORTNAME = oracle
lib_libkernels_oracle_la_CPPFLAGS = $(AM_CPPFLAGS) -DCOMBA_VARIANT_NAME=oracle -DCOMBA_REAL_DOUBLE
lib_libkernels_oracle_la_CFLAGS = $(KERNEL_CFLAGS)

# CUDA. NAME.cu makes NAME.cuda.lo, which may stand beside the NAME.lo of NAME.c. libtool does not know nvcc, so the text that makes
# an object a libtool one is written here.
cuda_sources = \
	lib/core/cuda.cu \
	lib/core/cuda_multiply.cu \
	lib/ops/activation.cu \
	lib/ops/adamw.cu \
	lib/ops/add.cu \
	lib/ops/bonus.cu \
	lib/ops/bounded_gate.cu \
	lib/ops/channel_decay.cu \
	lib/ops/channels_to_tokens.cu \
	lib/ops/closed_loop.cu \
	lib/ops/complement.cu \
	lib/ops/constant.cu \
	lib/ops/convolution.cu \
	lib/ops/cross_entropy.cu \
	lib/ops/cuda_together.cu \
	lib/ops/decay_gate.cu \
	lib/ops/divide.cu \
	lib/ops/dpfp.cu \
	lib/ops/drop_path.cu \
	lib/ops/dropout.cu \
	lib/ops/embedding.cu \
	lib/ops/exponential_gate.cu \
	lib/ops/gated_rms_norm.cu \
	lib/ops/gradient_clip.cu \
	lib/ops/head_skip.cu \
	lib/ops/hedgehog.cu \
	lib/ops/l2_norm.cu \
	lib/ops/last_token.cu \
	lib/ops/layer_norm.cu \
	lib/ops/lerp.cu \
	lib/ops/linear.cu \
	lib/ops/max_pool.cu \
	lib/ops/mean_pool.cu \
	lib/ops/narrow.cu \
	lib/ops/normalized_read.cu \
	lib/ops/patch_embedding.cu \
	lib/ops/position_embedding.cu \
	lib/ops/prepare_pictures.cu \
	lib/ops/product.cu \
	lib/ops/rms_norm.cu \
	lib/ops/rotary.cu \
	lib/ops/scan_merge.cu \
	lib/ops/scan_order.cu \
	lib/ops/sequence_pool.cu \
	lib/ops/sigmoid_gate.cu \
	lib/ops/short_convolution.cu \
	lib/ops/split.cu \
	lib/ops/sum_norm.cu \
	lib/ops/swiglu.cu \
	lib/ops/time_step.cu \
	lib/ops/token_scale.cu \
	lib/ops/token_shift.cu \
	lib/ops/widen.cu \
	lib/scan/attention.cu \
	lib/scan/attention_cudnn.cu \
	lib/scan/attention_decode.cu \
	lib/scan/cuda_scalar.cu \
	lib/scan/cuda_scalar_decode.cu \
	lib/scan/cuda_scalar_gradient.cu \
	lib/scan/cuda_scalar_key_gradient.cu \
	lib/scan/cuda_scalar_one_chunk.cu \
	lib/scan/cuda_scalar_scan.cu \
	lib/scan/delta_rule.cu \
	lib/scan/diagonal_decay.cu \
	lib/scan/memory.cu \
	lib/scan/memory_mlp.cu \
	lib/scan/mesa.cu \
	lib/scan/s4d.cu \
	lib/scan/scalar_decay.cu
cuda_headers = \
	lib/core/cuda.h \
	lib/core/cuda_kernel.h \
	lib/core/cuda_map.h \
	lib/core/cuda_packet.h \
	lib/ops/cuda_activation.h \
	lib/ops/cuda_convolution_token.h \
	lib/ops/cuda_few_rows.h \
	lib/ops/cuda_gates.h \
	lib/ops/cuda_grid.h \
	lib/ops/cuda_l2_norm.h \
	lib/ops/cuda_row_span.h \
	lib/ops/cuda_rows.h \
	lib/ops/cuda_sequences.h \
	lib/ops/cuda_thin.h \
	lib/ops/cuda_together.h \
	lib/ops/cuda_window.h \
	lib/scan/cuda_attention.h \
	lib/scan/cuda_block.h \
	lib/scan/cuda_chunks.h \
	lib/scan/cuda_diagonal.h \
	lib/scan/cuda_fragment.h \
	lib/scan/cuda_inner_loss.h \
	lib/scan/cuda_memory.h \
	lib/scan/cuda_memory_forward.h \
	lib/scan/cuda_memory_gradient.h \
	lib/scan/cuda_memory_map.h \
	lib/scan/cuda_memory_mlp.h \
	lib/scan/cuda_memory_operands.h \
	lib/scan/cuda_normed_loss.h \
	lib/scan/cuda_scalar.h \
	lib/scan/cuda_scalar_chunk.h \
	lib/scan/cuda_scalar_gradient.h \
	lib/scan/cuda_scalar_private.h \
	lib/scan/cuda_tile.h
EXTRA_DIST += $(cuda_sources) $(cuda_headers) lib/core/backend_cuda.c
if CUDA
cuda_objects = $(cuda_sources:.cu=.cuda.lo)
cuda_library_sources = lib/core/backend_cuda.c
$(cuda_objects): %.cuda.lo: %.cu $(cuda_headers) lib/core/backend.h lib/core/device_memory.h lib/core/op.h lib/core/random.h \
  lib/ops/axis_taps.h lib/ops/grid_order.h lib/ops/ops.h lib/ops/window.h
	@$(MKDIR_P) $(@D)
	$(AM_V_NVCC)$(NVCC) -std=c++17 -O3 --extended-lambda $(NVCC_ARCHITECTURES) $(NVCC_WERROR) $(CUDNN_CPPFLAGS) \
	  -I$(top_srcdir)/lib -Xcompiler -fPIC,-Wall,-fvisibility=hidden -c -o $*.cuda.o $<
	@printf '# %s - a libtool object file\n# Generated by libtool\npic_object=%s\nnon_pic_object=none\n' \
	  "$(@F)" "'$(*F).cuda.o'" >$@
AM_V_NVCC = $(AM_V_NVCC_$(V))
AM_V_NVCC_ = $(AM_V_NVCC_$(AM_DEFAULT_VERBOSITY))
AM_V_NVCC_0 = @echo "  NVCC     $@";
cuda: $(cuda_objects)
CLEANFILES += $(cuda_objects) $(cuda_objects:.lo=.o)
endif

# Everything, for the programs and the tests, which see its hidden symbols too.
noinst_LTLIBRARIES += lib/libcomba-all.la
lib_libcomba_all_la_SOURCES = $(library_sources) $(cuda_library_sources)
lib_libcomba_all_la_LIBADD = $(kernel_libraries) $(cuda_objects) $(CUDA_LIBS) \
	$(ONEDNN_LIBS) $(BLAS_LIBS) $(JANSSON_LIBS) $(PNG_LIBS) $(JPEG_LIBS) $(LIBM)

lib_LTLIBRARIES += lib/libcomba.la
lib_libcomba_la_SOURCES =
lib_libcomba_la_LIBADD = lib/libcomba-all.la
lib_libcomba_la_LDFLAGS = $(AM_LDFLAGS) -no-undefined -version-info $(COMBA_LIBRARY_VERSION)
lib_libcomba_la_LIBTOOLFLAGS =

# What comba-lm and comba-vision share: options, progress, run folder, training loop.
noinst_LTLIBRARIES += lib/libprogram.la
lib_libprogram_la_SOURCES = \
	lib/program/canvas.c \
	lib/program/canvas.h \
	lib/program/curves.c \
	lib/program/curves.h \
	lib/program/describe.c \
	lib/program/describe.h \
	lib/program/figures.c \
	lib/program/figures.h \
	lib/program/forward.c \
	lib/program/forward.h \
	lib/program/info.c \
	lib/program/info.h \
	lib/program/manual.c \
	lib/program/manual.h \
	lib/program/options.c \
	lib/program/options.h \
	lib/program/presets.c \
	lib/program/presets.h \
	lib/program/progress.c \
	lib/program/progress.h \
	lib/program/run_folder.c \
	lib/program/run_folder.h \
	lib/program/trainer.c \
	lib/program/trainer.h \
	lib/program/training_options.c \
	lib/program/version.c \
	lib/program/version.h
lib_libprogram_la_LIBADD = lib/libcomba-all.la

# The commit, for --version: of the checkout, or what the environment variable COMBA_COMMIT says. Written anew only where it is
# another, so that nothing is compiled for it in vain; left alone where git may not read the checkout (`sudo make install`).
lib/program/version.lo: commit.h
commit.h: always
	@commit=$$COMBA_COMMIT; if test -z "$$commit" && test -e $(top_srcdir)/.git; then \
	  commit=`git -C $(top_srcdir) describe --always --dirty 2>/dev/null` || test ! -e $@ || exit 0; fi; \
	echo "#define COMBA_COMMIT \"$$commit\"" >$@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
always:
.PHONY: always
CLEANFILES += commit.h
