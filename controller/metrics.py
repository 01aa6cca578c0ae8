"""Every metric of Torpor. All labels are bounded: kinds, states, steps, reasons, never names.

Whoever makes something happen counts it here; nobody reads a metric to decide anything. What does
not live here: the HTTP server that shows them (each process has its own), per-Instance figures.
"""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

API_REQUESTS = Counter(
    "torpor_api_requests_total",
    "Requests to the API server by their HTTP code; 'none' where no answer came",
    ("verb", "resource", "code"),
)
WATCH_EVENTS = Counter("torpor_watch_events_total", "Objects received by a watch", ("resource",))
WATCH_ENDS = Counter(
    "torpor_watch_ends_total",
    "Why a watch or list ended: closed, stalled, expired, refused, broken",
    ("resource", "cause"),
)
CACHE_OBJECTS = Gauge("torpor_cache_objects", "Objects in a reflector's cache", ("resource",))

QUEUE_DEPTH = Gauge("torpor_queue_depth", "Keys ready and waiting for a worker", ("queue",))
QUEUE_SECONDS = Histogram(
    "torpor_queue_wait_seconds", "From ready to taken by a worker", ("queue",), buckets=_SECONDS
)
QUEUE_RETRIES = Counter("torpor_queue_retries_total", "Passes that failed", ("queue",))
PASS_SECONDS = Histogram(
    "torpor_pass_seconds", "One pass over one key", ("queue",), buckets=_SECONDS
)

EVENTS_SENT = Counter("torpor_events_sent_total", "Kubernetes Events written")
EVENTS_DROPPED = Counter(
    "torpor_events_dropped_total", "Events not written: overflow, refused, failed", ("cause",)
)
LEASE_HELD = Gauge("torpor_lease_held", "1 while this process holds the Lease", ("lease",))

INSTANCES = Gauge("torpor_instances", "Instances this process looks after", ("state",))
TRANSITIONS = Counter(
    "torpor_transitions_total", "Changes of state that were seen", ("source", "target")
)
STEP_SECONDS = Histogram("torpor_step_seconds", "One step of a plan", ("step",), buckets=_SECONDS)
SAVE_SECONDS = Histogram(
    "torpor_save_seconds",
    "Saving memory by its parts: device state, pages, making all of it durable",
    ("part",),
    buckets=_SECONDS,
)
STEP_ERRORS = Counter("torpor_step_errors_total", "Steps that failed", ("step", "reason"))
