"""The numbers of the cost model that were fitted to measurements, or stand in for one. What is made of them is
`memory_costs` and `time_costs`; rates of single cards are in `cards.toml` and `measured_rates`."""

from dataclasses import dataclass

from presets.planner.sizes import GIB


@dataclass(frozen=True)
class Coefficients:
    """Fitted on an H200, 2026-11-22, unless it says otherwise. Bytes are in row tensors of 2 M D bytes where a comment
    says "rows": M rows (tokens times batch), D the width."""

    # On the device
    context: float = 0.6 * GIB  # CUDA itself, kernels and library handles: outside torch's count. An estimate
    stem: float = 21.3  # bytes per D^2 of the parts around the blocks: 0.52 GiB
    fixed: float = 0.13 * GIB  # of a pass, whatever its length: norms' tables, LoRA casts, text
    # rows over the whole length while chunks are worked on: gradients in and out, without the activations window
    outside: float = 5.9
    # rows over one chunk: backward of the token-wise parts. An H100 and two H200s, 2026-11-28 ...
    chunk: float = 4.7
    chunk_ffn: float = 4.0  # ... and, of width F, its feed-forward
    turned_ffn: float = 1.0  # the same with int8 alone: a product before it is rotated back. Counted, not measured
    # rows during attention's backward when chunked: q, k, v, their gradients, the graph before them, workspace
    attention: float = 14.6
    stash_rows: float = 2.0  # rows that wait for a block's backward: its input and its attention's output
    hidden_rows: float = 2.0  # more of them where the hidden states inside a block are saved ...
    # ... and rows over one chunk that its recomputation then needs less. An H100 and an H200, 2026-11-28
    hidden_spared: float = 5.0
    # blocks of these on the device with activations on the host: the present one and the one read ahead
    activation_window: int = 2
    kept: float = 11.0  # rows of a kept block's graph. An H200, 2026-11-28 ...
    kept_ffn: float = 1.0  # ... and, of width F; one more where it holds the GELU. An H200, 2026-11-29
    kept_text: float = 3.0  # ... and of the text: keys, also before their norm, and values. Counted
    kept_backward: float = 9.0  # rows while a kept block goes backward
    forward_attention: float = 9.0  # rows of a pass without a graph around attention. An estimate
    forward_outside: float = 4.0  # the same around the token-wise parts. An estimate
    forward_chunk: float = 5.0
    forward_chunk_ffn: float = 2.5
    lost: float = 0.13  # of the working set: what the allocator cannot hand out again. As `chunk`
    lost_chunked: float = 0.06
    lost_activations: float = 0.04  # of activations on the device
    lost_kept: float = 0.002
    lost_vae: float = 0.1  # An estimate
    graph_inputs: float = 3.0  # rows of the longest graphed pass that have fixed addresses. Counted
    graph: float = 0.5 * 2**20  # the driver's, for one CUDA graph of a block. An estimate
    # The VAE: bytes per pixel of a frame
    encode_pixel: float = 1920.0  # the frames that later runs look back at, per clip in the batch
    encode_frame: float = 960.0  # for each frame that goes through at a time
    encode_clip_frame: float = 18.0  # for each frame of the clip: its pixels in fp32 and bf16
    encode_empty_frame: float = 12.0  # for each frame between a first and a last one that are given, in fp32. Counted
    decode_pixel: float = 9400.0
    decode_clip_frame: float = 25.0
    vae_weights: float = 0.24 * GIB
    # Host memory
    process: float = 4.0 * GIB  # Python, CUDA and the data workers; before these, what is read ahead of the base
    # share of the text encoder in its linears, which come to the device; the table of words stays in host memory
    text_linears: float = 0.815
    ram_margin: float = 1.5 * GIB  # for everything else on the machine
    # Seconds
    half_rows: float = 250.0  # rows at which a matrix product runs at half its rate
    # rows read and written by one block's token-wise parts, besides the products, the attention to the text among them:
    # fitted on an H100, 2026-11-27, and right on an H200
    traffic_forward: float = 90.0
    traffic_backward: float = 185.0
    traffic_kept: float = 8.0  # more of them where a graph is kept: norms made again. Counted
    traffic_gelu: float = 5.5  # and the GELU. Counted
    spared: float = 20.0  # fewer of them where a block is recomputed: see TimeCosts._spared
    # more of them when chunked, each way: by the kernels of 4 and 10 chunks of 8,000 rows hardly any
    traffic_chunked: float = 5.0
    copy: float = 0.9  # of the copy rate, while the card computes
    # of the copy rate, where host memory is not page-locked: the driver copies twice. An estimate
    unlocked: float = 0.4
    # seconds in which the launching thread queues a block that is not in chunks: forward, once more with a graph, its
    # gradient. The card's own work hides them where it takes longer. Float8, an H100 and an H200, 2026-11-27; the same
    # block has taken 13 to 23 ms in all
    launch_forward: float = 6.5e-3
    launch_again: float = 7.1e-3
    launch_gradient: float = 8.0e-3
    launch_chunk: float = 0.4  # of these for every chunk but the first: about half of a block is launched again
    # the same where a block is a CUDA graph, each way: its inputs copied to where they are fixed, one call. An estimate
    launch_graph: float = 1.0e-3
    graph_rows: float = 10.0  # rows read and written by those copies, each way. Counted
    graph_gaps: float = 0.3e-3  # between its kernels, each way: what was over at 21 x 256 x 256 on an H200
    vae_rate: float = 0.355  # of the bf16 rate, by cuDNN's convolutions. From 0.33 (an H100) to 0.38 (an H200)
    encode_rate: float = 0.535  # of the bf16 rate, by ours: H100 and H200, and reckoned with on their generation alone
    step: float = 0.02  # seconds of a step that belong to nothing else
    video: float = 2.0  # seconds to write one preview. An estimate
    save: float = 3.0  # seconds of a checkpoint. An estimate
    compile: float = 40.0  # seconds for each new shape, 30 to 45


FITTED = Coefficients()
# Of an attention kernel's rate by itself, what it reaches in a step: a cold card times flash-attn-4 too slow, others
# fall behind with the clip's length. Of those not named: FORWARD, BACKWARD. H100 and H200, 2026-11-27
FORWARD, BACKWARD = 0.88, 1.0
FORWARD_IN_STEPS = {"flash4": 1.03}
BACKWARD_IN_STEPS = {"flash4": 1.03, "triton-large": 0.97, "triton-small": 0.97}
# more rows than `attention`: torch's flash kernel in a fixed order has partial sums in fp32, ours have no workspace
ATTENTION_ROWS = {"flash": 6.0, "triton-large": -1.9, "triton-small": -1.9}
# per pixel and frame, counted at 41 x 512 x 512
ENCODE_FLOP, DECODE_FLOP = 54e12 / (41 * 512 * 512), 91e12 / (41 * 512 * 512)
# The encode of a conditioning, a first frame and then zeros (engine.encode.vae_encoder): of each stage of the encoder
# its share of the operations, counted from its shapes, and how many pixel frames its layers compute in the mean. The
# last stage computes all.
STILL_STAGES = ((0.42, 9), (0.36, 18), (0.17, 35), (0.05, 10**6))
