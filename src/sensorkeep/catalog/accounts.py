"""Users, API keys and refresh tokens in the catalog's database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sensorkeep.catalog.base import ApiKey, RefreshToken, User
from sensorkeep.catalog.database import AnyRow, Database
from sensorkeep.catalog.schema import api_keys, refresh_tokens, users
from sensorkeep.clock import Clock
from sensorkeep.errors import Conflict, NotFound


class CatalogAccounts:
    """The Accounts of the catalog.

    Ending a family marks its tokens instead of deleting them: a token of that family which is issued at the same
    moment and entered afterwards is then dead as well.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def put_user(self, user: User) -> None:
        self._replace(users, "username", _user_row(user))

    def add_user(self, user: User) -> None:
        with self._database.write() as connection:
            connection.execute(sa.insert(users).values(_user_row(user)))

    def change_user(
        self,
        username: str,
        *,
        password_hash: str | None = None,
        scopes: frozenset[str] | None = None,
        disabled: bool | None = None,
        keeping: str | None = None,
    ) -> User:
        given = {
            "password_hash": password_hash,
            "scopes": None if scopes is None else _scopes_text(scopes),
            "disabled": disabled,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        leaves = disabled or (scopes is not None and keeping not in scopes)

        def change(connection: sa.Connection) -> User:
            if leaves:
                _refuse_the_last(connection, username, keeping)
            if _locked(connection, username) is None:
                raise NotFound(f"there is no user {username!r}")
            if changed:
                connection.execute(sa.update(users).where(users.c.username == username).values(changed))
            if password_hash is not None or disabled:
                self._end(connection, refresh_tokens.c.username == username)
            return _user(connection.execute(sa.select(users).where(users.c.username == username)).one())

        return self._database.transact(change)

    def replace_password_hash(self, username: str, known: str, renewed: str) -> bool:
        same = sa.and_(users.c.username == username, users.c.password_hash == known)
        with self._database.write() as connection:
            return connection.execute(sa.update(users).where(same).values(password_hash=renewed)).rowcount == 1

    def user(self, username: str) -> User | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(users).where(users.c.username == username)).one_or_none()
        return None if row is None else _user(row)

    def users(self) -> list[User]:
        with self._database.read() as connection:
            return [_user(row) for row in connection.execute(sa.select(users).order_by(users.c.username))]

    def delete_user(self, username: str, *, keeping: str | None = None) -> None:
        def delete(connection: sa.Connection) -> None:
            _refuse_the_last(connection, username, keeping)
            if connection.execute(sa.delete(users).where(users.c.username == username)).rowcount == 0:
                raise NotFound(f"there is no user {username!r}")
            self._end(connection, refresh_tokens.c.username == username)

        self._database.transact(delete)

    def put_key(self, key: ApiKey) -> None:
        row = {
            "id": key.id,
            "name": key.name,
            "secret_sha256": key.secret_sha256,
            "scopes": _scopes_text(key.scopes),
            "created_us": key.created_us,
            "expires_us": key.expires_us,
            "max_ws_connections": key.max_ws_connections,
            "last_used_us": key.last_used_us,
        }
        self._replace(api_keys, "id", row)

    def key_by_secret(self, secret_sha256: str) -> ApiKey | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.secret_sha256 == secret_sha256)).one_or_none()
        return None if row is None else _key(row)

    def keys(self) -> list[ApiKey]:
        newest_first = sa.select(api_keys).order_by(api_keys.c.created_us.desc(), api_keys.c.id.desc())
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(newest_first)]

    def touch_key(self, key_id: str, used_us: int) -> None:
        with self._database.write() as connection:
            connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(last_used_us=used_us))

    def delete_key(self, key_id: str) -> None:
        with self._database.write() as connection:
            if connection.execute(sa.delete(api_keys).where(api_keys.c.id == key_id)).rowcount == 0:
                raise NotFound(f"there is no key {key_id!r}")

    def put_refresh_token(self, token: RefreshToken, holder: User | None = None) -> bool:
        with self._database.write() as connection:
            if holder is not None and not _still_holds(connection, holder):
                return False
            connection.execute(sa.insert(refresh_tokens).values(_token_row(token)))
        return True

    def use_refresh_token(self, token_id: str, successor: RefreshToken | None = None) -> RefreshToken | None:
        table = refresh_tokens.c
        relative = refresh_tokens.alias("relative")
        alive = ~sa.exists().where(relative.c.family == table.family, relative.c.revoked_us.is_not(None))
        # Its own mark is asked for as well: where PostgreSQL waits for somebody who ends the family, it looks at this
        # row anew and not at the others.
        spend = (
            sa.update(refresh_tokens)
            .where(table.token_id == token_id, table.used_us.is_(None), table.revoked_us.is_(None), alive)
            .values(used_us=self._clock.now_us())
        )

        def use(connection: sa.Connection) -> RefreshToken | None:
            won = connection.execute(spend).rowcount == 1
            row = connection.execute(sa.select(refresh_tokens).where(table.token_id == token_id)).one_or_none()
            if row is None:
                return None
            if not won:
                self._end(connection, table.family == row.family)
                return None
            if successor is not None:
                connection.execute(sa.insert(refresh_tokens).values(_token_row(successor)))
            return RefreshToken(row.token_id, row.family, row.username, row.expires_us)

        return self._database.transact(use)

    def purge(self, now_us: int) -> None:
        """Forget the refresh tokens that expired before `now_us`, but keep a dead family's mark while a token of it
        could still be shown."""
        relative = refresh_tokens.alias("relative")
        table = refresh_tokens.c
        of_living_family = sa.exists().where(relative.c.family == table.family, relative.c.expires_us >= now_us)
        expired = sa.delete(refresh_tokens).where(
            table.expires_us < now_us, sa.or_(table.revoked_us.is_(None), ~of_living_family)
        )
        with self._database.write() as connection:
            connection.execute(expired)

    def _end(self, connection: sa.Connection, whose: sa.ColumnElement[bool]) -> None:
        still_alive = sa.update(refresh_tokens).where(whose, refresh_tokens.c.revoked_us.is_(None))
        connection.execute(still_alive.values(revoked_us=self._clock.now_us()))

    def _replace(self, table: sa.Table, key: str, row: dict[str, Any]) -> None:
        statement = self._database.insert(table).values(row)
        others = {name: statement.excluded[name] for name in row if name != key}
        with self._database.write() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=others))


def _still_holds(connection: sa.Connection, holder: User) -> bool:
    """Whether the user's sessions may go on as they were begun. A change of the user waits until the transaction ends,
    and then sees what it did."""
    row = _locked(connection, holder.username, read=True)
    return row is not None and not row.disabled and row.password_hash == holder.password_hash


def _locked(connection: sa.Connection, username: str, *, read: bool = False) -> AnyRow | None:
    """The row of a user, which nobody changes until the transaction ends (SQLite has one writer); with `read` others
    may lock it so, too."""
    statement = sa.select(users).where(users.c.username == username)
    return connection.execute(statement.with_for_update(read=read)).one_or_none()


def _refuse_the_last(connection: sa.Connection, leaving: str, scope: str | None) -> None:
    """Raises Conflict where `leaving` alone has the scope. Nobody loses it meanwhile: the rows stay locked, and all who
    ask take them in the same order."""
    if scope is None:
        return
    rows = connection.execute(sa.select(users).order_by(users.c.username).with_for_update())
    if [user.username for user in map(_user, rows) if scope in user.scopes and not user.disabled] == [leaving]:
        raise Conflict(f"This is the last user with the scope {str(scope)!r}; give it to another user first.")


def _user_row(user: User) -> dict[str, Any]:
    return {
        "username": user.username,
        "password_hash": user.password_hash,
        "scopes": _scopes_text(user.scopes),
        "disabled": user.disabled,
    }


def _token_row(token: RefreshToken) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "family": token.family,
        "username": token.username,
        "expires_us": token.expires_us,
    }


def _scopes_text(scopes: frozenset[str]) -> str:
    return " ".join(sorted(scopes))


def _user(row: AnyRow) -> User:
    return User(row.username, row.password_hash, frozenset(row.scopes.split()), row.disabled)


def _key(row: AnyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        secret_sha256=row.secret_sha256,
        scopes=frozenset(row.scopes.split()),
        created_us=row.created_us,
        expires_us=row.expires_us,
        max_ws_connections=row.max_ws_connections,
        last_used_us=row.last_used_us,
    )
