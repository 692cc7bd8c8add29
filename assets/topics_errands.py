"""Topics of errands and the office: travel, orders, meetings, the bank."""

from assets.topics import fact, topic

TRAVEL = topic(
    "travel",
    "train, ferry, night bus, tram, coach",
    [
        (
            "A: Hello, I need a {T} ticket to {L}. My name is {A}. | B: Of course, {A}. I'm {B}, let me help you.",
            "{A} books a {T} ticket to {L} with {B}",
        ),
        (
            "A: {B}, I missed the {T} to {L}! | B: Calm down, {A}, we'll find another way.",
            "{A} missed the {T} to {L} and calls {B}",
        ),
        (
            "B: {A}, are you coming to {L} with me next month? | A: Yes, {B}, let's go by {T}.",
            "{A} and {B} will go to {L} by {T}",
        ),
    ],
    [
        fact(
            "fare",
            "How much is the fare?",
            ("A: What does the ticket cost? | B: It's {n} there and back.", "the return fare is {n}"),
            (
                "B: The cheap seats are gone, now it's {n}. | A: Never mind, I'll take it.",
                "{A} accepts the higher price of {n}",
            ),
            numbers=(20, 990),
        ),
        fact(
            "seat",
            "Which seat is it?",
            ("A: I'd like to sit by the window. | B: Then take seat {n}.", "seat {n} is by the window"),
            ("B: I could give you seat {n} in the {w} car. | A: Perfect.", "{A} gets seat {n} in the {w} car"),
            numbers=(10, 400),
            words="front, quiet, last, dining",
        ),
        fact(
            "town",
            "Where does one have to change?",
            ("A: Do I have to change? | B: Yes, once, in {y}, to line {n}.", "one has to change to line {n} in {y}"),
            ("A: Is it a direct one? | B: It is, but it stops in {y} for a {w}.", "it is direct with a {w} in {y}"),
            value="y",
            numbers=(10, 99),
            words="short break, crew change, customs check",
        ),
        fact(
            "hotel",
            "What is the name of the hotel?",
            (
                "A: Where can I spend the night? | B: Try the hotel {y}, room {n} is free.",
                "room {n} at hotel {y} is free",
            ),
            (
                "B: I've booked the hotel {y} for us. | A: But that's the one with the {w}!",
                "{A} dislikes the hotel {y} because of the {w}",
            ),
            value="y",
            words="mice, noise, smell, hard beds",
        ),
        fact(
            "host",
            "Who meets them at the station?",
            (
                "B: Will anybody meet you there? | A: {x} is going to wait on platform {n}.",
                "{x} will wait on platform {n}",
            ),
            (
                "A: Shall we visit {x} there? | B: Rather not, we had a {w}.",
                "{B} does not want to visit {x} after a {w}",
            ),
            value="x",
            numbers=(10, 40),
            words="quarrel, bad week, fight about money",
        ),
        fact(
            "booking number",
            "What is the booking number?",
            ("A: Could I have the booking number? | B: Sure, it's {n}, please keep it.", "the booking has number {n}"),
            ("B: Do you have a booking? | A: Yes, number {n}, made by {x}.", "{x} made booking {n}"),
            numbers=(1000, 9999),
        ),
        fact(
            "weight",
            "How many kilos does the luggage weigh?",
            (
                "B: How heavy is your luggage? | A: About {n} kilos with the {w}.",
                "the luggage with the {w} weighs {n} kilos",
            ),
            ("A: May I take my {w} along? | B: Yes, but it costs {n} more.", "taking a {w} costs {n} extra"),
            numbers=(11, 99),
            words="skis, tent, dog, drum, bicycle",
        ),
    ],
    [
        "A: A friend of mine paid {k} to get to {y}. | B: It depends on the season.",
        "B: Do you know {x}? That's a great guide. | A: No, never heard of that one.",
    ],
)

ORDER = topic(
    "order",
    "lamp, sofa, coffee maker, carpet, bookcase, tent, mattress",
    [
        (
            "A: Hello, my {T} has arrived damaged. I'm {A} from {L}. | B: I'm very sorry. I'm {B} from customer care.",
            "{A} from {L} complains to {B} about a damaged {T}",
        ),
        (
            "A: Hi, this is {A}. I'm still waiting for my {T}. | "
            "B: Hello {A}, {B} here. It's still in our store in {L}.",
            "{B} says that {A}'s {T} is still in {L}",
        ),
        (
            "A: Hello, I want to send back a {T}. | B: Alright, I'm {B}. Who is calling? | A: {A}, from {L}.",
            "{A} from {L} wants to return a {T} to {B}",
        ),
    ],
    [
        fact(
            "order number",
            "What is the order number?",
            ("B: Could you give me the order number? | A: Yes, it's {n}.", "the order number is {n}"),
            ("A: I have two orders, this is about {n}. | B: Okay, I have it in front of me.", "{A} means order {n}"),
            numbers=(1000, 9999),
        ),
        fact(
            "refund",
            "How much is given back?",
            ("A: I want my money back. | B: I'll send you {n} today.", "{B} refunds {n} at once"),
            ("A: Can you make it cheaper for me? | B: I can take {n} off the price.", "{B} grants a discount of {n}"),
            numbers=(20, 900),
        ),
        fact(
            "driver",
            "Who is the driver?",
            ("A: Who delivered it? | B: Our driver {x}, who is new.", "it was delivered by the new driver {x}"),
            (
                "A: It was left with my neighbour {x}! | B: The driver found nobody at home.",
                "the parcel was left with the neighbour {x}",
            ),
            value="x",
        ),
        fact(
            "price",
            "How much does the other one cost?",
            (
                "A: It should have been {w}. | B: The {w} one is {n}, so it's a bit more.",
                "the {w} one {A} wanted costs {n}",
            ),
            ("B: We only have it in {w} for {n}. | A: That's okay with me.", "{A} takes the {w} one for {n}"),
            numbers=(40, 999),
            words="green, blue, white, yellow, grey, brown",
        ),
        fact(
            "shop",
            "In which shop can it be picked up?",
            (
                "A: Can I pick it up somewhere? | B: Yes, at our shop in {y}, at desk {n}.",
                "it can be picked up at desk {n} of the shop in {y}",
            ),
            (
                "B: Please take it to our shop in {y}. | A: That's too far, I have no car.",
                "{A} cannot go to the shop in {y}",
            ),
            value="y",
            numbers=(10, 99),
        ),
        fact(
            "voucher",
            "How much is the voucher worth?",
            ("B: I can offer you a voucher over {n}. | A: Okay, that's fair.", "{A} accepts a voucher over {n}"),
            ("B: Would a voucher over {n} do? | A: No, I'm through with your shop.", "{A} rejects a voucher over {n}"),
            numbers=(11, 300),
        ),
        fact(
            "manager",
            "Who is the manager?",
            ("A: Let me talk to the manager. | B: {x} will call you on {w}.", "manager {x} will call on {w}"),
            (
                "A: Your colleague {x} was very rude. | B: I'll have a word with that person.",
                "{A} found {B}'s colleague {x} rude",
            ),
            value="x",
            words="Monday, Wednesday, Thursday, Friday",
        ),
    ],
    [
        "B: The factory in {y} is on strike, you know. | A: That's not my problem.",
        "A: At the shop of {x} it was only {k}. | B: I can't say anything about that.",
    ],
)

MEETING = topic(
    "meeting",
    "budget, safety, sales, design, website, hiring",
    [
        (
            "A: {B}, can we move the {T} meeting? | B: Sure, {A}, our guests from {L} are late anyway.",
            "{A} and {B} move the {T} meeting with guests from {L}",
        ),
        (
            "B: {A}, the {T} meeting won't be in {L} any more. | A: Thanks for the warning, {B}. What else is new?",
            "{B} tells {A} that the {T} meeting in {L} has changed",
        ),
        (
            "A: Are you joining the {T} meeting, {B}? | B: No, {A}, I'm off to {L} that day.",
            "{B} misses the {T} meeting {A} runs to go to {L}",
        ),
    ],
    [
        fact(
            "room",
            "Which room is it?",
            ("A: Which room do we have? | B: I booked room {n} for us.", "{B} booked room {n}"),
            (
                "B: Is room {n} big enough? | A: No, the {w} doesn't work in there either.",
                "{A} rejects room {n} with its broken {w}",
            ),
            words="screen, heating, phone, window",
        ),
        fact(
            "number of people",
            "How many people will be there?",
            (
                "A: Which day suits you? | B: {w} is best, then all {n} people can come.",
                "on {w} all {n} people can come",
            ),
            ("B: Only {n} people can come on {w}. | A: That will have to do.", "{A} is content with {n} people on {w}"),
            numbers=(11, 99),
            words="Monday, Tuesday, Wednesday, Thursday, Friday",
        ),
        fact(
            "speaker",
            "Who gives the talk?",
            ("A: Who will give the talk? | B: {x} said yes this morning.", "{x} has agreed to give the talk"),
            ("B: Shall I ask {x} to take notes? | A: Yes, please do.", "{B} asks {x} to take notes"),
            value="x",
        ),
        fact(
            "report",
            "How many pages does the report have?",
            (
                "B: Did you finish the report? | A: Yes, all {n} pages, I sent it to {x}.",
                "{A} sent the report of {n} pages to {x}",
            ),
            (
                "A: Your report has {n} pages! | B: I know, I'll cut the part on {y}.",
                "{B} shortens the report of {n} pages by the part on {y}",
            ),
            numbers=(10, 400),
        ),
        fact(
            "sum",
            "How much money is it about?",
            (
                "A: How much do we ask for? | B: Let's say {n} for the first year.",
                "they will ask for {n} in the first year",
            ),
            ("B: We have spent {n} on {w} already. | A: That has to stop.", "{A} objects to the {n} spent on {w}"),
            numbers=(1000, 9999),
            words="coffee, paper, taxis, flowers, software",
        ),
        fact(
            "city",
            "Where is the partner from?",
            ("A: Do we call the office in {y}? | B: Yes, ask for {x} there.", "{x} in the {y} office has to be called"),
            (
                "B: The people in {y} want to join by video. | A: Then I'll set up the {w}.",
                "{A} sets up a {w} for those in {y}",
            ),
            value="y",
            words="camera, link, laptop, projector",
        ),
        fact(
            "extension",
            "Which extension is it?",
            ("A: How do I reach you? | B: Dial {n}, that's my new extension.", "{B}'s new extension is {n}"),
            (
                "B: Who can help with the {w}? | A: Call {n} and ask for {x}.",
                "{x} on extension {n} can help with the {w}",
            ),
            numbers=(100, 999),
            words="slides, printer, lights, door code",
        ),
    ],
    [
        "A: Last week {x} fell asleep in there. | B: I can't blame anybody for that.",
        "B: The flight to {y} was {k} again. | A: Prices are crazy these days.",
    ],
)

BANK = topic(
    "bank",
    "savings account, credit card, car loan, safe, student account",
    [
        (
            "A: Hello, I'm {A}. I'd like a {T}, please. | B: Welcome to our branch in {L}. I'm {B}.",
            "{A} applies for a {T} at {B}'s branch in {L}",
        ),
        (
            "A: {B}? It's {A}. I want to close my {T}. | B: That's a shame. Did you move away from {L}? | "
            "A: Yes, I did.",
            "{A} closes a {T} after leaving {L} and informs {B}",
        ),
        (
            "B: Is that {A}? I'm {B} from the bank in {L}. There's a problem with your {T}. | A: What kind of problem?",
            "{B} from the bank in {L} warns {A} about a {T}",
        ),
    ],
    [
        fact(
            "amount",
            "Which amount is wrong?",
            ("A: Somebody took {n} from me! | B: I'll block it right now.", "{B} blocks it after a theft of {n}"),
            ("B: Did you pay {n} to {x}? | A: No, I've never heard that name.", "{A} never paid {n} to {x}"),
            numbers=(100, 9999),
        ),
        fact(
            "account number",
            "What is the account number?",
            ("B: Please tell me the last digits of the number. | A: They are {n}.", "{A}'s number ends in {n}"),
            ("B: The new number ends in {n}. | A: I'll write it down at once.", "the new number ends in {n}"),
            numbers=(1000, 9999),
        ),
        fact(
            "monthly payment",
            "How much is paid each month?",
            ("A: What would I pay each month? | B: With your income it would be {n}.", "{A} would pay {n} a month"),
            (
                "A: I can't pay {n} a month any more. | B: Then let's make it {k}.",
                "{B} lowers the payment from {n} to {k} a month",
            ),
            numbers=(20, 900),
        ),
        fact(
            "adviser",
            "Who is the adviser?",
            (
                "A: Is {x} still my adviser? | B: Yes, until the end of the year.",
                "{x} remains {A}'s adviser until the end of the year",
            ),
            (
                "B: Your new adviser is {x} in {y}. | A: Do I have to go there now?",
                "{x} in {y} becomes {A}'s new adviser",
            ),
            value="x",
        ),
        fact(
            "town",
            "Where is the cash machine?",
            (
                "A: The cash machine swallowed my card. | B: Which one? | A: The one in {y}.",
                "the cash machine in {y} kept {A}'s card",
            ),
            (
                "A: Where can I get cash at night? | B: There's a machine in {y}, by the {w}.",
                "{A} can get cash at night by the {w} in {y}",
            ),
            value="y",
            words="church, theatre, pool, town hall",
        ),
        fact(
            "form",
            "Which form is needed?",
            ("B: You have to sign form {n}. | A: I'll bring it on {w}.", "{A} brings the signed form {n} on {w}"),
            ("A: Is form {n} enough? | B: No, I also need your {w}.", "besides form {n} a {w} is needed"),
            numbers=(10, 999),
            words="passport, pay slip, birth certificate, tax notice",
        ),
        fact(
            "sum",
            "How much will it bring?",
            ("A: Is it worth it? | B: In ten years you'd gain {n}.", "it brings a gain of {n} in ten years"),
            (
                "A: There's a charge of {n} that I don't understand. | B: That's for the {w}.",
                "{B} explains the charge of {n} for the {w}",
            ),
            numbers=(11, 999),
            words="new card, letters, transfer abroad, late payment",
        ),
    ],
    [
        "A: Your colleague {x} promised me {k}. | B: I'm afraid that was a mistake.",
        "B: Are you the one who owns the bakery in {y}? | A: No, that's my brother.",
    ],
)

TOPICS = (TRAVEL, ORDER, MEETING, BANK)
