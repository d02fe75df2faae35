"""A small OAuth2 server: the client-credentials grant, tokens that are JWTs (RFC 9068), and its keys for whoever verifies them.

usage: oauth_server.py ISSUER PORT; the clients' secrets come from the environment. Needs `authlib` and `flask`.
"""

import hmac
import os
import sys

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, grants
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, jsonify
from joserfc.jwk import ECKey

issuer, port = sys.argv[1], int(sys.argv[2])

# What comes here has come over the mesh's mutual TLS, which the server doesn't see: to Authlib it is plain HTTP.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

# A new key with every start: what was signed before is worth nothing after.
key = ECKey.generate_key("P-256", parameters={"kid": "first", "use": "sig", "alg": "ES256"})


class Client(ClientMixin):
    """Someone who may ask for tokens."""

    def __init__(self, name, secret, scopes):
        self.name, self.secret, self.scopes = name, secret, scopes

    def get_client_id(self):
        return self.name

    def get_allowed_scope(self, scope):
        return " ".join(asked for asked in (scope or "").split() if asked in self.scopes)

    def check_client_secret(self, secret):
        return hmac.compare_digest(secret, self.secret)

    def check_endpoint_auth_method(self, method, endpoint):
        return method in ("client_secret_basic", "client_secret_post")

    def check_grant_type(self, grant_type):
        return grant_type == "client_credentials"


class Tokens(JWTBearerTokenGenerator):
    """What a token says: who asked for it, what for, and that MLflow is to accept it."""

    def get_jwks(self):
        return key

    def get_audiences(self, client, user, scope):
        return ["mlflow"]


class ClientCredentials(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]


clients = {
    "otel-collector": Client("otel-collector", os.environ["COLLECTOR_SECRET"], {"traces:write"}),
    "dashboard": Client("dashboard", os.environ["DASHBOARD_SECRET"], {"traces:read"}),
}
app = Flask(__name__)
server = AuthorizationServer(app, query_client=clients.get, save_token=lambda token, request: None)
server.register_token_generator("default", Tokens(issuer=issuer, alg="ES256", expires_generator=lambda *_: 300))
server.register_grant(ClientCredentials)


@app.post("/token")
def token():
    return server.create_token_response()


@app.get("/jwks.json")
def jwks():
    return jsonify(keys=[key.as_dict(private=False)])


@app.get("/.well-known/openid-configuration")
def configuration():
    return jsonify(issuer=issuer, token_endpoint=f"{issuer}/token", jwks_uri=f"{issuer}/jwks.json")


@app.get("/health")
def health():
    return "ok"


app.run(host="0.0.0.0", port=port, threaded=True)
