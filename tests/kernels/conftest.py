from tests.attention_cases import one_thread  # noqa: F401
