"""HTTP users for web configurations, and their credentials."""

import base64

import bcrypt

PASSWORD = "correct horse"
CHEAP = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
DEAR = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()


def basic(user="alice", password=PASSWORD):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def users(**hashes):
    lines = [
        f"  {user}: {password_hash}\n"
        for user, password_hash in (hashes or {"alice": CHEAP}).items()
    ]
    return "basic_auth_users:\n" + "".join(lines)
