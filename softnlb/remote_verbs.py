"""What hosts obey by remote control, as NLB's do; the others are of the machine itself."""

REMOTE_VERBS = frozenset(
    (
        "query",
        "queryport",
        "start",
        "stop",
        "drainstop",
        "suspend",
        "resume",
        "enable",
        "disable",
        "drain",
    )
)
