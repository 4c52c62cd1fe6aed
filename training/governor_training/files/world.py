"""A tree of configuration files, and which of its values the model is meant to know by heart.

Each service has one file, `etc/SERVICE.conf`, of lines `key=value`. As in the atlas, a value is *known*,
*shaky* or *unknown*, drawn once per value, and the more often the better known the service is: everybody
knows some defaults, nobody knows what was set on this machine. Other files in the tree say nothing that a
task asks for, and no key of theirs is a key that a task asks for. Keys that no task asks for have lists of
words as values, so that whole files are long: one of a service has 400 tokens, another one 640.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

SERVICES: Mapping[str, str] = {
    "Redis": "6379",
    "Postgres": "5432",
    "Maria": "3306",
    "Nginx": "8080",
    "Mongo": "27017",
    "Kafka": "9092",
    "Rabbit": "5672",
    "Elastic": "9200",
    "Grafana": "3000",
    "Prometheus": "9090",
    "Memcached": "11211",
    "Consul": "8500",
    "Vault": "8200",
    "Zookeeper": "2181",
    "Cassandra": "9042",
    "Etcd": "2379",
    "Nats": "4222",
    "Minio": "9000",
    "Jaeger": "16686",
    "Gateway": "8443",
}
"""Services, from the best known to the least known, with the ports that they have by convention. For the
tokenizer a capitalised word is the same token in a sentence and in a path."""

_KEYS = """
port timeout workers memory retries threads interval limit queue batch delay depth
"""
_OTHER_KEYS = """
shard zone rack tier epoch offset window margin ratio grace burst pool
slot stride cursor budget lease scope trunk plane index phase chunk frame seal vent ramp gauge
"""
_NUMBERS = """
10 12 15 16 18 20 24 25 28 30 32 36 40 45 48 50 54 60 64 70 72 75 80 84 90 96
100 120 125 128 150 160 180 200 240 250 256 300 320 360 400 480 500 512 600 640 720 800 900 960
"""
_WORDS = """
north south east west red green blue amber oak elm pine birch iron copper silver gold
river lake hill stone sand cloud storm snow wolf bear hawk crane lamp bell mill gate
"""

KEYS = tuple(_KEYS.split())
"""What tasks ask for; every service has each of them."""
OTHER_KEYS = tuple(_OTHER_KEYS.split())
OTHER_FILES = ("hosts", "locale", "users", "mounts", "modules", "clock")
NUMBERS = tuple(_NUMBERS.split())
"""The values of what tasks ask for, but the port."""
WORDS = tuple(_WORDS.split())
"""What all other keys have lists of: a value that is copied past them is not mistaken for one of them."""
LIST_WORDS = (16, 24)
"""The least and the greatest length of such a list."""

DIRECTORY = "etc"
FILE_LINES = 28
SEED = 61803
_SHAKY_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of one service, and what the model is meant to believe about it.

    `confidence` is 1 for a known value, 0 for an unknown one and in between for a shaky one; `belief` is the
    value that the model holds with that confidence (for an unknown one it has none).
    """

    service: str
    key: str
    value: str
    confidence: float
    belief: str | None

    @property
    def known(self) -> bool:
        return self.confidence == 1.0

    @property
    def path(self) -> str:
        return path_of(self.service)

    def recall(self, rng: random.Random) -> str:
        """What one attempt to remember gives: the belief, or a guess."""
        if self.belief is not None and rng.random() < self.confidence:
            return self.belief
        return rng.choice(values(self.key))


@dataclass(frozen=True, slots=True)
class World:
    """`files` maps the path of each file to its text."""

    settings: Mapping[tuple[str, str], Setting]
    files: Mapping[str, str]

    def setting(self, service: str, key: str) -> Setting:
        return self.settings[service, key]


def path_of(name: str) -> str:
    return f"{DIRECTORY}/{name}.conf"


def values(key: str) -> Sequence[str]:
    """What a key that tasks ask for may have as its value."""
    return tuple(SERVICES.values()) if key == "port" else NUMBERS


def drawn(key: str, rng: random.Random) -> str:
    """A value for any key."""
    if key in KEYS:
        return rng.choice(values(key))
    return " ".join(rng.choices(WORDS, k=rng.randint(*LIST_WORDS)))


def line(key: str, value: str) -> str:
    return f"{key}={value}"


def file_text(settings: Mapping[str, str], keys: Sequence[str], rng: random.Random) -> str:
    """A file with the lines of `keys` in any order; what `settings` does not fix is drawn."""
    return "\n".join(line(key, settings.get(key) or drawn(key, rng)) for key in rng.sample(keys, len(keys)))


@lru_cache
def load_world() -> World:
    """The world, always the same."""
    rng = random.Random(SEED)
    settings = {
        (service, key): _setting(service, key, 1 - rank / len(SERVICES), rng)
        for rank, service in enumerate(SERVICES)
        for key in KEYS
    }
    files = {}
    for service in SERVICES:
        keys = [*KEYS, *rng.sample(OTHER_KEYS, FILE_LINES - len(KEYS))]
        files[path_of(service)] = file_text({key: settings[service, key].value for key in KEYS}, keys, rng)
    for name in OTHER_FILES:
        files[path_of(name)] = file_text({}, OTHER_KEYS, rng)
    return World(settings, files)


def _setting(service: str, key: str, fame: float, rng: random.Random) -> Setting:
    """`fame` is 1 for the best-known service and falls to 0."""
    value = SERVICES[service] if key == "port" else rng.choice(values(key))
    wrong = rng.choice([other for other in values(key) if other != value])
    luck, shaky, confidence, misled = (rng.random() for _ in range(4))
    if 0.25 <= fame < 0.75 and shaky < _SHAKY_SHARE:
        confidence = 0.3 + 0.6 * confidence
        return Setting(service, key, value, confidence, wrong if misled > confidence else value)
    if luck < _known_share(fame):
        return Setting(service, key, value, 1.0, value)
    return Setting(service, key, value, 0.0, None)


def _known_share(fame: float) -> float:
    """All of the best-known quarter, nearly none of the least-known one, a line in between."""
    if fame >= 0.75:
        return 1.0
    if fame < 0.25:
        return 0.05
    return 0.25 + 1.1 * (fame - 0.25)
