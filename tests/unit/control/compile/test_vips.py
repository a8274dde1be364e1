"""Addresses for services that have none."""

from meshlib.control.compile.vips import allocated, own_addresses
from meshlib.control.registry import Service, build_registry
from meshlib.control.sources.text import documents_in


def services(*hosts: str, address: str = "") -> dict[str, tuple[Service, ...]]:
    documents = "\n---\n".join(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
        f"metadata: {{name: e{number}}}\n"
        f"spec: {{hosts: ['{host}'], addresses: [{address}], ports: [{{number: 80, name: tcp}}]}}"
        for number, host in enumerate(hosts)
    )
    return dict(build_registry(documents_in(documents, "a.yaml").documents).services)


def test_an_address_depends_on_the_name_alone() -> None:
    few, many = allocated(services("a.example", "b.example")), allocated(services("b.example", "z.example"))
    assert few["b.example"] == many["b.example"]
    assert few["a.example"] != few["b.example"]
    assert all(address.startswith("240.240.") for address in (*few.values(), *many.values()))


def test_each_host_has_its_own_whatever_their_hashes() -> None:
    found = allocated(services(*(f"h{number}.example" for number in range(2000))))
    assert len(set(found.values())) == 2000
    assert not {"240.240.0.0", "240.240.255.255"} & set(found.values())


def test_who_has_one_or_can_not_be_looked_up_is_given_none() -> None:
    assert allocated(services("*.example")) == {}
    assert allocated(services("a.example", address="10.0.0.1")) == {}
    (six,) = services("a.example", address="2001:db8::1")["a.example"]
    assert own_addresses(six) == ()
    assert set(allocated({"a.example": [six]})) == {"a.example"}
