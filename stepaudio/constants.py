"""Every rate and ratio of the model, derived once; nothing here is a size of a particular checkpoint.

Speech in: 16 000 samples/s -> 100 mel frames/s -> 50 convolution frames/s -> 25 encoder frames/s -> 12.5 audio
embeddings/s. Speech out: 25 codes/s.
"""


def exact_div(a: int, b: int) -> int:
    """Integer quotient that must leave no remainder."""
    assert a % b == 0, f"{a} is not a multiple of {b}"
    return a // b


SAMPLE_RATE = 16_000  # Hz, of all audio that goes in
N_FFT = 400  # samples, 25 ms window
HOP = 160  # samples, 10 ms
TAIL_PADDING = 479  # zeros that the reference appends before its STFT
FRAMES_PER_SECOND = exact_div(SAMPLE_RATE, HOP)  # 100 mel frames
CONV_STRIDE = 2  # of the encoder's second convolution
POOL_STRIDE = 2  # of its average pooling
ENCODER_FRAMES_PER_SECOND = exact_div(FRAMES_PER_SECOND, CONV_STRIDE * POOL_STRIDE)  # 25
EMBEDDINGS_PER_SECOND = ENCODER_FRAMES_PER_SECOND / 2  # 12.5 audio embeddings, as published adapters stride
CODES_PER_SECOND = 25  # audio codes, spoken or heard
CHUNK_SECONDS = 25  # longest segment; the reference segments audio here
CHUNK_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE  # 400 000
MIN_SECONDS = 0.1  # shorter recordings are refused
N_AUDIO_CODES = 6561  # 3^8 finite-scalar-quantiser codes; <audio_6561> and above are padding
DRAFT_TOKENS = 4  # proposed at a time in speculative decoding
MAX_TOKENS = 2048  # default length limit of every way of generating
MAX_CACHE_LEN = 4096  # default number of cached positions
SINKS = 4  # first positions that stay, unless another number is asked for


def n_mel_frames(n_samples: int) -> int:
    """Mel frames the reference front end makes of `n_samples` at 16 kHz."""
    return (n_samples + TAIL_PADDING) // HOP


def n_audio_embeddings(n_frames: int) -> int:
    """Audio embeddings (= `<audio_patch>` tokens) that `n_frames` mel frames become; 0 if too short.

    Reference: `compute_token_num` of StepFun's `utils.py`.
    """
    valid = n_frames - 2
    encoder_len = (valid + 1) // 2 // 2
    return max(0, (encoder_len - 1) // 2 + 1)
