"""Which of Kokoro-82M's voices train nano, and how often; which are kept back to score it.

Twenty-six voices were made for other languages. With English phonemes they speak English, with rhythm and sounds of
their own, and are as many people again. A nano trained on English ones alone got 7.5 % of the words of three of them
wrong, and 2.4 % of those of English voices that were not in its training data either.
"""

RESERVED = ("af_nicole", "am_michael", "bf_emma", "bm_george")
RESERVED_OTHER = ("hm_omega", "im_nicola", "zf_xiaoni")

ENGLISH = [
    "af_alloy",
    "af_aoede",
    "af_bella",
    "af_heart",
    "af_jessica",
    "af_kore",
    "af_nova",
    "af_river",
    "af_sarah",
    "af_sky",
    "am_adam",
    "am_echo",
    "am_eric",
    "am_fenrir",
    "am_liam",
    "am_onyx",
    "am_puck",
    "am_santa",
    "bf_alice",
    "bf_isabella",
    "bf_lily",
    "bm_daniel",
    "bm_fable",
    "bm_lewis",
]
OTHER = [
    "ef_dora",
    "em_alex",
    "em_santa",
    "ff_siwis",
    "hf_alpha",
    "hf_beta",
    "hm_psi",
    "if_sara",
    "jf_alpha",
    "jf_gongitsune",
    "jf_nezumi",
    "jf_tebukuro",
    "jm_kumo",
    "pf_dora",
    "pm_alex",
    "pm_santa",
    "zf_xiaobei",
    "zf_xiaoxiao",
    "zf_xiaoyi",
    "zm_yunjian",
    "zm_yunxi",
    "zm_yunxia",
    "zm_yunyang",
]
# am_puck is the least clear of the English ones, ff_siwis and zm_yunxia of the others
VOICES = dict.fromkeys(ENGLISH, 1.0) | dict.fromkeys(OTHER, 0.7) | {"am_puck": 0.25, "ff_siwis": 0.3, "zm_yunxia": 0.3}
