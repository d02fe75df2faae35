"""Prints an access token of the client-credentials grant.

usage: fetch_token.py TOKEN_ENDPOINT CLIENT SCOPE; the secret comes from CLIENT_SECRET. Needs `authlib` and `requests`.
"""

import os
import sys

from authlib.integrations.requests_client import OAuth2Session

endpoint, client, scope = sys.argv[1:4]
session = OAuth2Session(client, os.environ["CLIENT_SECRET"], scope=scope)
print(session.fetch_token(endpoint, grant_type="client_credentials")["access_token"])
