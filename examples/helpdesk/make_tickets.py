"""A made-up export of a helpdesk, with the troubles of real ones; see docs/helpdesk.md.

Writes into the current folder tickets.csv (600 rows), later.csv (200 rows of the weeks after, all
labeled) and spoiled.csv (what only we can know: the rows of tickets.csv whose queue is wrong, with
the right one).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path

SEED = 4
N_TICKETS, N_LATER = 600, 200
N_REPEATED, N_NEARLY, N_UNLABELED, N_SPOILED = 18, 24, 30, 27

_PRODUCTS = (
    *(
        "kettle",
        "desk lamp",
        "backpack",
        "headphones",
        "coffee grinder",
        "bike light",
        "rain jacket",
    ),
    *("keyboard", "water filter", "camping stove", "baby monitor", "suitcase", "router", "toaster"),
)
_GREETINGS = ("Hi,", "Hello,", "Dear team,", "Good morning,", "To whom it may concern,", "")
_THANKS = (
    "Thanks",
    "Kind regards",
    "Please advise.",
    "Waiting for your answer.",
    "Best wishes",
    "",
)
_SMALL_TALK = (
    "I have been a customer for years and never had to write before.",
    "I tried the phone line first but hung up after twenty minutes.",
    "My partner bought the same {product} and is happy with it.",
    "This is the second time that I write about this.",
    "Your chat sent me here.",
    "I am traveling until Friday, so mail is best.",
    "The shop page says something different.",
    "I know it is a busy season for you.",
)
# For each queue subjects, and sentences that say what is wrong.
_QUEUES = {
    "billing": (
        ("Invoice", "Charged twice", "Wrong amount", "Question about my bill", "Payment", "VAT"),
        (
            "My card was charged twice for the {product}.",
            "The invoice shows {amount} euros, but the page said less.",
            "I need an invoice with our VAT number on it for the {product}.",
            "The discount code was accepted and then not taken off the total.",
            "My bank says that you have reserved the money twice.",
            "Why is there a fee of {amount} euros on my statement?",
            "Can I pay for order {order} by bank transfer instead of by card?",
            "The installment for {month} was taken a week too early.",
            "Please correct the company name on the bill for {order}.",
            "I canceled the subscription in {month} and you still take money every month.",
        ),
    ),
    "delivery": (
        (
            "Where is my parcel?",
            "Late",
            "Order {order}",
            "Tracking",
            "Wrong address",
            "Not arrived",
        ),
        (
            "The {product} should have been here on Monday, and nothing came.",
            "Tracking has said 'in transit' for nine days.",
            "The courier left the box with a neighbor whom I do not know.",
            "Can you send order {order} to my office instead? It has not left yet.",
            "The driver rang once and drove off; the card says to collect it 30 km away.",
            "Only one of the two boxes of order {order} has arrived.",
            "When will the {product} leave your warehouse?",
            "The status says delivered, but there is nothing at my door.",
            "I gave the old street by mistake; can the parcel still be redirected?",
            "Customs holds the {product} and wants a paper from you.",
        ),
    ),
    "returns": (
        ("Return", "Send it back", "Wrong size", "Exchange", "Order {order}", "I changed my mind"),
        (
            "I would like to send the {product} back; it is unused.",
            "Please mail me a label so that I can post the {product} to you.",
            "The {product} is too small; can I swap it for the next size?",
            "I returned order {order} two weeks ago and the refund has not come.",
            "The color is nothing like the picture, so I do not want to keep it.",
            "How many days do I have to bring the {product} back to a store?",
            "You sent a {product} that I never ordered. Who collects it?",
            "I opened the box, but did not use the {product}. Do you take it back?",
            "The gift was a duplicate; may I have a voucher in exchange?",
            "The drop-off point refused the return without a printed form.",
        ),
    ),
    "account": (
        (
            "Cannot log in",
            "Password",
            "Delete my data",
            "Email address",
            "My account",
            "Locked out",
        ),
        (
            "The link to reset my password has expired each time that I open it.",
            "I have a new email address and cannot change it in my profile.",
            "Please delete my account and all data that you hold about me.",
            "The code of the second factor never reaches my phone.",
            "I am locked out after three tries and do not know why.",
            "Somebody has logged in to my profile from another country.",
            "How can I merge my two accounts? My points are split between them.",
            "I keep getting your newsletter although I unsubscribed in {month}.",
            "The app signs me out every few minutes.",
            "My name is misspelled in my profile and the field is grayed out.",
        ),
    ),
    "technical": (
        ("Broken", "Does not work", "Help with my {product}", "Error", "It stopped", "Setup"),
        (
            "The {product} does not switch on any more.",
            "After the update of {month} the {product} loses its connection every hour.",
            "There is a rattling noise inside the {product} when I move it.",
            "The light of the {product} blinks red three times, and then it stops.",
            "I cannot pair the {product} with my phone; it shows error {code}.",
            "The battery of the {product} lasts ten minutes instead of a day.",
            "Which cable does the {product} need? The manual does not say.",
            "A plastic part broke off on the first day of use.",
            "The {product} gets so hot that I dare not leave it plugged in.",
            "Where can I download the firmware for the {product}?",
        ),
    ),
}
# Nobody can tell from these alone; in the columns beside them it stands.
_VAGUE = (
    ("Order {order}", "There is a problem with my {product}. Please call me back."),
    ("Complaint", "I am not satisfied at all and want this settled this week."),
    ("Re: your message", "As I wrote before, it is still the same. What happens now?"),
    ("Question", "Could somebody look at order {order}, please?"),
)
_SECOND = ("delivery", "billing", "technical", "returns")  # what some complain of beside the first
_CHANNELS = {  # shares of email, web, phone, app
    "billing": (6, 2, 1, 1),
    "delivery": (2, 3, 4, 1),
    "returns": (2, 7, 0, 1),
    "account": (1, 1, 1, 7),
    "technical": (2, 2, 5, 1),
}
_DAYS = {"billing": 24, "delivery": 7, "returns": 14, "account": 200, "technical": 90}
_MONTHS = ("January", "February", "March", "April", "May", "June")
_START = date(2025, 7, 1)


@dataclass(frozen=True)
class Ticket:
    """A row of the export; ``queue`` is the label."""

    ticket: str
    customer: str
    opened: str
    channel: str
    days_since_order: int
    amount: str
    subject: str
    body: str
    queue: str


class _Desk:
    """Makes tickets, all from one generator of random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # not for secrets

    def ticket(self, number: int) -> Ticket:
        draw = self.random
        queue = draw.choice(list(_QUEUES))
        subject, body = self._words(queue)
        days = max(0, round(draw.gauss(_DAYS[queue], _DAYS[queue] / 3)))
        return Ticket(
            ticket=f"T-{10_000 + number}",
            customer=f"C-{draw.randrange(1, 330):04}",
            opened=(_START + timedelta(days=number // 7)).isoformat(),
            channel=draw.choices(("email", "web", "phone", "app"), _CHANNELS[queue])[0],
            days_since_order=days,
            amount="" if queue == "account" else f"{draw.uniform(9, 240):.2f}",
            subject=subject,
            body=body,
            queue=queue,
        )

    def _words(self, queue: str) -> tuple[str, str]:
        draw, (subjects, problems) = self.random, _QUEUES[queue]
        subject, said = draw.choice(subjects), draw.sample(problems, draw.choice((1, 1, 2)))
        if draw.random() < 0.08:
            subject, one = draw.choice(_VAGUE)
            said = [one]
        elif draw.random() < 0.15:  # two complaints in one letter, the second in passing
            said.append("Also: " + draw.choice(_QUEUES[draw.choice(_SECOND)][1]))
        said[1:1] = draw.sample(_SMALL_TALK, draw.choice((0, 1, 1, 2)))
        if draw.random() < 0.06:
            subject = ""
        slots = {
            "product": draw.choice(_PRODUCTS),
            "order": f"#{draw.randrange(10_000, 99_999)}",
            "amount": f"{draw.uniform(3, 240):.2f}",
            "month": draw.choice(_MONTHS),
            "code": f"E{draw.randrange(10, 99)}",
        }
        lines = [draw.choice(_GREETINGS), " ".join(said), draw.choice(_THANKS)]
        lines = [line.format(**slots) for line in lines if line]
        if draw.random() < 0.4:
            return subject.format(**slots), self._html(lines)
        return subject.format(**slots), "\n".join(lines)

    def _html(self, lines: Sequence[str]) -> str:
        """As web mail sends it, with a style sheet, entities and a signature."""
        paragraphs = "".join(f"<p>{line.replace(chr(39), '&#39;')}</p>" for line in lines)
        signature = self.random.choice(("", "<br><i>Sent from my phone &mdash; sorry</i>"))
        return f"<html><style>p {{margin: 0}}</style><div>{paragraphs}{signature}</div></html>"


def make_tickets(seed: int = SEED) -> tuple[list[Ticket], list[Ticket], list[Ticket]]:
    """The export, the rows of later weeks, and the spoiled rows of the export as they should be."""
    desk = _Desk(seed)
    draw = desk.random
    n_own = N_TICKETS - N_REPEATED - N_NEARLY
    tickets = [desk.ticket(number) for number in range(n_own + N_LATER)]
    tickets, later = tickets[:n_own], tickets[n_own:]
    for place, one in enumerate(draw.sample(tickets, N_REPEATED + N_NEARLY)):
        again = replace(one, ticket=f"T-{20_000 + place}")  # sent again, or once more with a plea
        if place >= N_REPEATED:
            again = replace(again, body=one.body.replace("</div>", "<p>Urgent!</p></div>"))
            again = again if again.body != one.body else replace(again, body=f"{one.body} Urgent!")
        tickets.append(again)
    draw.shuffle(tickets)
    rows = draw.sample(range(N_TICKETS), N_UNLABELED + N_SPOILED)
    spoiled = sorted(rows[N_UNLABELED:])
    right = [tickets[row] for row in spoiled]
    for row in rows[:N_UNLABELED]:
        tickets[row] = replace(tickets[row], queue="")
    for row in spoiled:
        others = [queue for queue in _QUEUES if queue != tickets[row].queue]
        tickets[row] = replace(tickets[row], queue=draw.choice(others))
    return tickets, later, right


def main() -> None:
    """Write the files."""
    for name, rows in zip(("tickets", "later", "spoiled"), make_tickets(), strict=True):
        with Path(f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, rows))
        print(f"{name}.csv: {len(rows)} rows")


if __name__ == "__main__":
    main()
