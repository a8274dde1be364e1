"""RequestAuthentication: which tokens (JWT) of end users are checked, and how."""

from meshlib.control.istio.fields import Bool, LabelSelector, Seconds, Spec, TargetReference, Text


class JWTHeader(Spec):
    """A header that may hold a token, after a prefix."""

    name: Text = ""
    prefix: Text = ""


class ClaimToHeader(Spec):
    """A claim that is passed on as a header."""

    header: Text = ""
    claim: Text = ""


class JWTRule(Spec):
    """How the tokens of one issuer are checked."""

    issuer: Text = ""
    audiences: tuple[Text, ...] = ()
    jwks_uri: Text = ""
    jwks: Text = ""
    from_headers: tuple[JWTHeader, ...] = ()
    from_params: tuple[Text, ...] = ()
    from_cookies: tuple[Text, ...] = ()
    output_payload_to_header: Text = ""
    forward_original_token: Bool = False
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    timeout: Seconds | None = None
    space_delimited_claims: tuple[Text, ...] = ()


class RequestAuthentication(Spec):
    """The spec of a RequestAuthentication."""

    selector: LabelSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: tuple[TargetReference, ...] = ()
    jwt_rules: tuple[JWTRule, ...] = ()
