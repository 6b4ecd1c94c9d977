"""One history: requests, crashes, lost counters, repeated, waiting and late settles, jumping clocks, an outbox,
top-ups and transfers, dropped detail; checked at every step."""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec.structs import replace

from gateway.ledger import Entry, fold
from gateway.limits.book import Ask, Book, Budget, Gate, Grant, Missing, NotHeld, Rate, Refusal
from gateway.limits.wallets import FUNDING, Transfer, sums
from gateway.limits.windows import BUSY_RETRY_US, SLOTS
from tests.simulate.model import Model, Now

PERIOD_US = 1_000_000
WINDOW_US = 60_000
HOLD_US = 300_000
WALLET = "wallet:w"
WINDOWED = "window"


class Broken(AssertionError):
    """A promise did not hold."""


class Disk:
    """What survives a crash: entries by id, and the sums that are written with them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.debits: dict[str, int] = {}
        self.credits: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self.gone: set[str] = set()

    def commit(self, entries: list[Entry]) -> None:
        """All or nothing, each entry once: as `Ledger.commit` does it in SQL."""
        new = {entry.id: entry for entry in entries if entry.id not in self.entries}
        self.entries |= new
        batch = fold(new.values())
        for account, nano in batch.charges.items():
            self.debits[account] = self.debits.get(account, 0) + nano
        self.move(batch.transfers)

    def drop(self, ids: list[str]) -> None:
        """Forget entries and keep what they charged, as `drop_entries` does it in SQL."""
        for id in ids:
            one = self.entries.pop(id)
            self.gone.add(id)
            for account in one.accounts:
                self.dropped[account] = self.dropped.get(account, 0) + one.charged_nano

    def move(self, transfers: list[Transfer]) -> None:
        for account, balance in sums(transfers).items():
            self.debits[account] = self.debits.get(account, 0) + balance.debits_nano
            self.credits[account] = self.credits.get(account, 0) + balance.credits_nano


class World:
    """A gateway with one key, one team and one wallet, its disk, and the model that watches."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self.tell = tell
        self.limits = {name: self.random.choice((0, 50, 400, 1000)) for name in ("key", "team", WINDOWED, WALLET)}
        self.period_max = self.random.choice((3, 30))
        self.requests_max = self.random.choice((1, 4, 20))
        self.tokens_max = self.random.choice((100, 400, 5000))
        self.together_max = self.random.choice((1, 3, 10))
        self.now_us = 10 * PERIOD_US
        self.seen = Now()
        self.number = 0
        self.book, self.disk, self.model = Book(), Disk(), Model()
        self.queue: list[Entry] = []
        self.outbox: list[Entry] = []
        self.answered: set[str] = set()
        self.moved_nano = 0
        self.over: list[str] = []
        self.untold: list[tuple[Grant, int, int, int]] = []
        if self.limits[WALLET]:
            self.disk.move([Transfer("top-up", FUNDING, WALLET, self.limits[WALLET], "top-up", 0)])

    def run(self, steps: int) -> None:
        """A whole history, and what must be possible after it."""
        actions, weights = zip(*ACTIONS, strict=True)
        for action in self.random.choices(actions, weights, k=steps):
            action(self)
            self.check()
        self.calm()

    def ask(self) -> Ask:
        """A random request; most have several scopes."""
        rng = self.random
        self.number += 1
        period = self.now_us // PERIOD_US
        budgets = [Budget(f"{name}:{period}", self.limits[name]) for name in ("key", "team") if rng.random() < 0.7]
        if rng.random() < 0.5:
            budgets.append(Budget(WALLET, self.limits[WALLET]))
        if rng.random() < 0.5:
            budgets.append(Budget(WINDOWED, self.limits[WINDOWED], WINDOW_US))
        limited = rng.random() < 0.6
        return Ask(
            id=f"r{self.number}",
            now_us=self.now_us,
            wall_us=self.now_us,
            expires_us=self.now_us + HOLD_US,
            rates=(
                Rate("requests", "requests", self.requests_max, WINDOW_US),
                Rate("tokens", "tokens", self.tokens_max, WINDOW_US),
                Rate(f"requests:{period}", "requests", self.period_max, PERIOD_US, (period + 1) * PERIOD_US),
            )
            if limited
            else (),
            gates=(Gate("key", self.together_max),) if limited else (),
            budgets=tuple(budgets),
            input_tokens=rng.randrange(40),
            input_nano=rng.randrange(40),
            output_tokens=rng.randrange(60),
            choices=rng.choice((1, 1, 2)),
            unit_nano=rng.choice((0, 1, 3)),
            output_tokens_min=rng.choice((None, 1)),
        )

    def admit(self, ask: Ask) -> Grant | Refusal:
        """As replicas do it: settlements that wait are told before it, or they wait at another replica, and what is
        refused for what they hold is asked once more when they have been told."""
        if self.random.random() < 0.5:
            self.tell_ends()
        decision = self.decide(ask)
        if isinstance(decision, Refusal) and decision.retry_us == BUSY_RETRY_US:
            self.tell_ends()
            decision = self.decide(ask)
        self.judge(ask, decision)
        return decision

    def decide(self, ask: Ask) -> Grant | Refusal:
        """As the limiter does it: accounts that are not known are loaded from the disk."""
        money_us = ask.wall_us if any(budget.window_us for budget in ask.budgets) else 0
        self.seen = Now(max(self.seen.rates_us, ask.now_us), max(self.seen.money_us, money_us))
        decision = self.book.admit(ask)
        if isinstance(decision, Missing):
            for account in decision.accounts:
                self.load(account)
            decision = self.book.admit(ask)
        if isinstance(decision, Missing):
            raise Broken("an account was loaded and is still missing")
        return decision

    def load(self, account: str) -> None:
        """What an account has spent: what is on the disk, and what is on its way there."""
        spent = {name: nano for name, nano in self.disk.debits.items() if _counter(name) == account}
        for one in (*self.queue, *self.outbox):
            for name in one.accounts:
                if _counter(name) == account and one.id not in self.disk.entries:
                    spent[name] = spent.get(name, 0) + one.charged_nano
        if account != WINDOWED:
            self.book.load(account, spent.get(account, 0))
            return
        slots = {int(name.split(":")[1]): nano for name, nano in spent.items()}
        self.book.load(account, sum(slots.values()), WINDOW_US, slots)

    def judge(self, ask: Ask, decision: Grant | Refusal) -> None:
        """Whether the model would have decided so, too."""
        if isinstance(decision, Grant):
            # What costs nothing may come in until the counters hear that an account is used up.
            free = decision.nano == 0 and bool(self.untold)
            if self.model.fits(ask, decision.tokens, decision.nano, self.seen) is False and not free:
                raise Broken(f"{ask.id} was let in over a limit")
            if ask.output_tokens_min is None and decision.output_tokens != ask.output_tokens:
                raise Broken(f"{ask.id} was cut")
            self.model.admit(ask, decision, self.seen)
            return
        output_tokens = ask.output_tokens if ask.output_tokens_min is None else min(ask.output_tokens, 1)
        tokens = ask.input_tokens + output_tokens * ask.choices
        if ask.output_tokens_min is None and self.model.fits(
            ask, tokens, ask.input_nano + output_tokens * ask.unit_nano, self.seen
        ):
            raise Broken(f"{ask.id} was refused although it fits: {decision}")

    def arrive(self) -> None:
        decision = self.admit(self.ask())
        self.say(decision)

    def finish(self) -> None:
        """Any running request ends, in any order; its model may claim more than it could have used."""
        if not self.model.running:
            return
        identity = self.random.choice(list(self.model.running))
        grant = self.model.running[identity]
        done = self.random.random() < 0.8
        tokens = self.random.randrange(grant.tokens + 20) if done else 0
        nano = self.random.randrange(grant.nano + 20) if done else 0
        self.end(identity, tokens, nano)

    def end(self, identity: str, tokens: int, nano: int) -> None:
        grant = self.model.running[identity]
        paid = self.model.end(identity, tokens, nano)
        self.queue.append(entry(grant, nano, paid))
        self.over.append(identity)
        self.untold.append((grant, tokens, nano, paid))
        self.say(f"{identity} paid {paid}")
        if self.random.random() < 0.5:
            self.tell_ends()

    def tell_ends(self) -> None:
        """The counters learn how requests ended."""
        for grant, tokens, nano, paid in self.untold:
            charged = self.book.settle(grant.id, tokens, nano)
            if [one.nano for one in charged] != [paid] * len(grant.accounts):
                raise Broken(f"{grant.id} was charged {charged} instead of {paid}")
        self.untold.clear()

    def settle_again(self) -> None:
        """What is over cannot be settled once more."""
        self.tell_ends()
        if not self.over:
            return
        try:
            self.book.settle(self.random.choice(self.over), 10, 10)
        except NotHeld:
            return
        raise Broken("a request was settled twice")

    def commit(self) -> None:
        """The writer commits a group; now and then the answer to the commit is lost and it comes again."""
        group = self.queue[: self.random.randrange(1, 8)]
        if self.random.random() < 0.2:
            # The database is away, or nobody knows whether it took them: they are durable in the outbox.
            if self.random.random() < 0.5:
                self.disk.commit(group)
            self.outbox += group
        else:
            self.disk.commit(group)
            if self.random.random() < 0.2:
                return
        del self.queue[: len(group)]
        self.answered.update(entry.id for entry in group)

    def come_back(self) -> None:
        """The outbox is brought to the database; perhaps it dies before it has noted that."""
        self.disk.commit(self.outbox)
        if self.random.random() < 0.7:
            self.outbox.clear()

    def drop(self) -> None:
        """Old detail goes. What may come again is younger than that."""
        waiting = {one.id for one in (*self.queue, *self.outbox)}
        old = sorted(self.disk.entries.keys() & self.answered - waiting)
        self.disk.drop(old[: self.random.randrange(4)])

    def top_up(self) -> None:
        self.number += 1
        nano = self.random.choice((1, 30, 200))
        self.limits[WALLET] += nano
        self.disk.move([Transfer(f"t{self.number}", FUNDING, WALLET, nano, "top-up", 0)])

    def transfer(self) -> None:
        """Credit is held, moved, and the hold settled; a crash may come between any two of these."""
        self.number += 1
        nano = self.random.randrange(1, 200)
        budgets = (Budget(WALLET, self.limits[WALLET]),)
        expires_us = self.now_us + HOLD_US
        ask = Ask(f"m{self.number}", self.now_us, expires_us, self.now_us, budgets=budgets, input_nano=nano)
        if isinstance(decision := self.admit(ask), Refusal):
            return
        self.say(f"move {nano}")
        refused, dies = self.random.random() < 0.2, self.random.random() < 0.2
        if not refused:
            self.disk.move([Transfer(ask.id, WALLET, "wallet:v", nano, "transfer", 0)])
            self.moved_nano += nano
        self.model.end(decision.id, 0, 0 if refused else nano)
        if dies:
            self.crash()
        else:
            self.book.settle(decision.id, 0, 0 if refused else nano)
        self.over.append(decision.id)

    def crash(self) -> None:
        """Everything in memory is gone: counters, running requests, entries that were not durable. The journal knows
        which requests had no end, and the next process writes those as expired that the outbox does not bring."""
        self.say("crash")
        lost = []
        for one in self.queue:
            if one.id not in self.disk.entries and one.id not in {kept.id for kept in self.outbox}:
                self.model.lose(one.id, one.charged_nano, one.accounts)
            lost.append(one)
        begun = [entry(grant, 0, 0, "expired") for grant in self.model.running.values()]
        begun += [replace(one, status="expired", cost_nano=0, charged_nano=0) for one in lost]
        self.disk.commit(self.outbox)
        self.outbox.clear()
        self.disk.commit(begun)
        self.over.extend(self.model.running)
        self.untold.clear()
        self.model.running.clear()
        self.model.admitted.clear()
        self.queue.clear()
        self.book, self.seen = Book(), Now()

    def lose_counters(self) -> None:
        """The counters are gone while requests run: they are rebuilt from the ledger and from who still runs."""
        self.say("lost counters")
        self.untold.clear()
        self.book, self.seen = Book(), Now()
        for grant in self.model.running.values():
            for account in grant.accounts:
                self.load(account)
            self.book.restore(grant)
        self.model.admitted.clear()
        self.model.asks = {
            identity: (without_rates(ask), 0)
            for identity, (ask, _) in self.model.asks.items()
            if identity in self.model.running
        }

    def reread(self) -> None:
        """Accounts are forgotten, to be read from the disk anew, where that has everything."""
        if not self.queue and not self.outbox and not self.untold:
            for account in ("key", "team"):
                self.book.unload(f"{account}:{self.now_us // PERIOD_US}")
            self.book.unload(WALLET)

    def tick(self) -> None:
        self.tell_ends()
        self.now_us += self.random.randrange(WINDOW_US // 2)
        self.expire()

    def jump(self) -> None:
        """The clock is set: into the next period, or back."""
        self.tell_ends()
        self.now_us += self.random.choice((PERIOD_US, HOLD_US, -WINDOW_US, -PERIOD_US // 3))
        self.expire()

    def expire(self) -> None:
        for grant in self.book.expire(self.now_us):
            self.model.end(grant.id, grant.tokens, 0)
            self.over.append(grant.id)
            self.queue.append(entry(grant, 0, 0, "expired"))
        if self.random.random() < 0.2:
            self.seen = self.seen._replace(rates_us=max(self.seen.rates_us, self.now_us))
            self.book.forget(self.now_us, None if self.queue or self.outbox else PERIOD_US)
            if WINDOWED not in self.book._accounts:
                # With the account goes how late it was in it; the clock may be set back before it is loaded again.
                self.seen = self.seen._replace(money_us=0)

    def check(self) -> None:
        """What holds after every step, so for every prefix of the ledger."""
        for account, debits in self.disk.debits.items():
            name = account.split(":")[0]
            if not account.startswith("world:") and debits > self.limits[WALLET if name == "wallet" else name]:
                raise Broken(f"{account} is overspent: {debits}")
        spent = {int(name.split(":")[1]): nano for name, nano in self.disk.debits.items() if _counter(name) == WINDOWED}
        for last in spent:
            if sum(nano for slot, nano in spent.items() if last - SLOTS <= slot <= last) > self.limits[WINDOWED]:
                raise Broken(f"the window that ends in slot {last} is overspent")
        if sum(self.disk.debits.values()) - sum(self.disk.credits.values()) != self.charged():
            raise Broken("double entry is not zero")
        if not self.answered <= self.disk.entries.keys() | self.disk.gone | {one.id for one in self.outbox}:
            raise Broken("a finished answer has no entry")

    def charged(self) -> int:
        """All debits of budgets, which have no other side."""
        budgets = self.disk.debits.items()
        return sum(nano for account, nano in budgets if not account.startswith(("wallet:", "world:")))

    def calm(self) -> None:
        """After all, everything that was not spent can be spent, to the last nano-dollar, and not one more."""
        for identity in list(self.model.running):
            self.end(identity, 0, 0)
        self.tell_ends()
        self.disk.commit([*self.outbox, *self.queue])
        self.queue.clear()
        self.outbox.clear()
        self.check_sums()
        self.now_us = max(*self.seen, self.now_us) + 2 * WINDOW_US
        self.now_us = max([self.now_us, *(at_us + 2 * WINDOW_US for _, at_us, _ in self.model.windowed.values())])
        self.seen = Now(self.now_us, self.now_us)
        ends = {account: nano for account, nano in self.model.spent.items() if _counter(account) != WINDOWED}
        for account, spent in {**ends, WINDOWED: 0}.items():
            window_us = WINDOW_US if account == WINDOWED else None
            limit = self.limits[WALLET if account == WALLET else account.split(":")[0]]
            for nano, fits in ((limit - spent + 1, False), (limit - spent, spent < limit)):
                self.number += 1
                budget, ends_us = Budget(account, limit, window_us), self.now_us + HOLD_US
                last = Ask(f"r{self.number}", self.now_us, ends_us, self.now_us, budgets=(budget,), input_nano=nano)
                if isinstance(self.admit(last), Grant) is not fits:
                    raise Broken(f"{account}: {spent} of {limit} are spent, {nano} should {'' if fits else 'not '}fit")

    def check_sums(self) -> None:
        """Every balance is the sum of its entries, and every account is what the model says."""
        derived = dict(self.disk.dropped)
        if self.moved_nano:
            derived[WALLET] = derived.get(WALLET, 0) + self.moved_nano
        for one in self.disk.entries.values():
            for account in one.accounts:
                derived[account] = derived.get(account, 0) + one.charged_nano
        for account, nano in derived.items():
            if not nano == self.disk.debits.get(account, 0) == self.model.spent.get(account, 0):
                raise Broken(f"{account}: {nano} in entries, {self.disk.debits.get(account)} in its balance")

    def say(self, what: object) -> None:
        if self.tell is not None:
            self.tell(f"{self.now_us:>12} {what}")


def _counter(durable: str) -> str:
    """The account that the limiter counts, of one in the ledger."""
    return WINDOWED if durable.startswith(f"{WINDOWED}:") else durable


def entry(grant: Grant, cost_nano: int, charged_nano: int, status: str = "posted") -> Entry:
    return Entry(
        id=grant.id,
        request_id="r",
        at_us=0,
        status="expired" if status == "expired" else "posted",
        outcome="ok",
        tenant="t",
        key_id="k",
        model="m",
        target="m",
        provider="local",
        kind="chat",
        cost_nano=cost_nano,
        charged_nano=charged_nano,
        accounts=grant.durable_accounts,
    )


def without_rates(ask: Ask) -> Ask:
    """Lost windows start empty; what ran before is not counted in them."""
    return Ask(ask.id, ask.now_us, ask.expires_us, ask.wall_us, (), ask.gates, ask.budgets)


ACTIONS: tuple[tuple[Callable[[World], None], int], ...] = (
    (World.arrive, 40),
    (World.finish, 22),
    (World.commit, 14),
    (World.tick, 12),
    (World.settle_again, 4),
    (World.jump, 3),
    (World.crash, 3),
    (World.lose_counters, 3),
    (World.come_back, 4),
    (World.drop, 3),
    (World.top_up, 2),
    (World.transfer, 4),
    (World.reread, 4),
)
