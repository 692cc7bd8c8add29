"""Topics at home: renting, repairs, a party, lost property."""

from assets.topics import fact, topic

FLAT = topic(
    "flat",
    "studio, garden flat, loft, cottage, bedsit",
    [
        (
            "A: Hi {B}, this is {A}. Is the {T} in {L} still free? | B: Hello {A}! Yes, nobody has taken it yet.",
            "{A} wants to rent a {T} in {L} from {B}",
        ),
        (
            "A: Hello {B}, I came across your advert for a {T}. | "
            "B: That's right, {A}. It's in {L}, close to the park.",
            "{B} offers {A} a {T} in {L}",
        ),
        (
            "A: {B}, I'm moving out of the {T} in {L} soon. | "
            "B: Oh, {A}, that's a pity. Then I must find a new tenant.",
            "{A} tells {B} about leaving the {T} in {L}",
        ),
    ],
    [
        fact(
            "rent",
            "How much is the rent?",
            (
                "A: What is the rent each month? | B: It's {n} a month with heating.",
                "the monthly rent is {n} including heating",
            ),
            (
                "A: Is the price still the same as in the advert? | B: It went up a little, now I ask for {n}.",
                "{B} has raised the rent to {n}",
            ),
        ),
        fact(
            "deposit",
            "How much is the deposit?",
            (
                "B: I also need a deposit of {n} before the keys change hands. | A: I can bring that in cash.",
                "{A} will pay a deposit of {n} in cash",
            ),
            (
                "A: Do I have to leave a deposit? | B: Yes, {n}, and you get it back when you leave.",
                "a refundable deposit of {n} is due",
            ),
        ),
        fact(
            "name",
            "Who has the keys?",
            (
                "A: Where do I pick up the keys? | B: My cousin {x} has them, just ring the bell.",
                "{A} should collect the keys from {x}",
            ),
            (
                "B: The keys are with the caretaker, that's {x}. | A: Fine, I'll ask there.",
                "the caretaker {x} keeps the keys",
            ),
            value="x",
        ),
        fact(
            "bus",
            "Which bus stops nearby?",
            (
                "A: How do I get to work from there? | B: Bus {n} stops right outside and goes to {y}.",
                "bus {n} runs from the door to {y}",
            ),
            (
                "A: I work in {y}. Is that far? | B: Take bus {n}, you'll be there in no time.",
                "{A} can reach {y} by bus {n}",
            ),
            numbers=(10, 99),
        ),
        fact(
            "size",
            "How large is it in square metres?",
            (
                "A: How big is it? | B: It's {n} square metres, and there's a {w} as well.",
                "it measures {n} square metres and comes with a {w}",
            ),
            (
                "A: Is there room for my {w}? | B: With {n} square metres I'd say so.",
                "its {n} square metres leave space for {A}'s {w}",
            ),
            numbers=(20, 180),
            words="piano, pool table, sauna, wardrobe, work bench",
        ),
        fact(
            "flatmate",
            "Who wants to move in too?",
            (
                "A: May my friend {x} move in as well? | B: Sure, two people are fine with me.",
                "{B} lets {x} move in as well",
            ),
            (
                "A: Could {x} share it with me? | B: I'm afraid not, it's meant for one person.",
                "{B} refuses to let {x} share the place",
            ),
            value="x",
        ),
        fact(
            "flat number",
            "What is the number of the flat?",
            (
                "A: Which door is it? | B: Look for number {n}, the {w} door.",
                "the {w} door with number {n} is the right one",
            ),
            ("B: When you come, ring at number {n}. | A: Okay, I'll come on {w}.", "{A} will view number {n} on {w}"),
            words="Monday, Tuesday, Thursday, Saturday",
        ),
    ],
    [
        "A: The last place I saw in {y} cost {k}. | B: Well, that's a fancy part of town.",
        "B: A certain {x} called about it too. | A: I hope I'm still the first.",
    ],
)

REPAIR = topic(
    "repair",
    "washing machine, fridge, dishwasher, boiler, printer, bicycle, laptop",
    [
        (
            "A: Hello, {A} speaking, my {T} is broken. | B: Sorry to hear that. I'm {B} from the workshop in {L}.",
            "{A} reports a broken {T} to {B} at the workshop in {L}",
        ),
        (
            "A: {B}, can you take a look at my {T}? | B: Sure, {A}, bring it to my shop in {L}.",
            "{B} tells {A} to bring the {T} to the shop in {L}",
        ),
        (
            "A: Is that {B}? It's {A}, I'm calling about the {T}. | B: Yes, {A}, I drove it to {L} this morning.",
            "{B} has taken {A}'s {T} to {L}",
        ),
    ],
    [
        fact(
            "cost",
            "How much will it cost?",
            (
                "A: What will I have to pay? | B: I think {n} for the parts and the work.",
                "parts and work will cost {n}",
            ),
            (
                "B: A new motor would be {n}. | A: That's too much for me, please don't do it.",
                "{A} finds {n} for a new motor too expensive",
            ),
            numbers=(20, 990),
        ),
        fact(
            "part number",
            "What is the number of the part?",
            ("B: I need the number of the {w}. | A: Let me see, it says {n}.", "the {w} needed has number {n}"),
            (
                "B: I've ordered a {w}, number {n}. | A: Great, so it's only a matter of days.",
                "{B} has ordered {w} number {n}",
            ),
            numbers=(1000, 9999),
            words="pump, valve, filter, switch, cable, spring",
        ),
        fact(
            "mechanic",
            "Who will do the job?",
            ("A: Will you do it yourself? | B: No, my colleague {x} looks after those.", "{x} is in charge of the job"),
            (
                "A: I'd like {x} to do it, like last time. | B: That can be arranged.",
                "{B} agrees that {x} will do the work",
            ),
            value="x",
        ),
        fact(
            "number of days",
            "How many days are left on the guarantee?",
            (
                "A: Isn't it covered by the guarantee? | B: Yes, it has {n} days left, so it's free.",
                "the guarantee with {n} days left covers it",
            ),
            (
                "A: Is there a guarantee on your work? | B: You get {n} days from me.",
                "{B} gives a guarantee of {n} days",
            ),
            numbers=(20, 400),
        ),
        fact(
            "spare unit",
            "What is the number of the spare one?",
            (
                "A: I can't be without one all week. | B: I'll lend you a spare, number {n}, until it's done.",
                "{B} lends {A} spare unit {n} in the meantime",
            ),
            (
                "A: Do you have a spare I could use? | B: Number {n} is free, but you pay {k} for it.",
                "{A} may hire spare unit {n} for {k}",
            ),
            numbers=(100, 990),
        ),
        fact(
            "street",
            "In which street should it be collected?",
            (
                "A: I don't have a car. Can you come over? | B: Okay, I'll send a van to {y} Street.",
                "a van will come to {y} Street",
            ),
            (
                "B: Where shall I drop it off? | A: At my office in {y} Street, on {w}.",
                "{B} will return it to {y} Street on {w}",
            ),
            value="y",
            words="Monday, Wednesday, Friday",
        ),
        fact(
            "code",
            "Which error code does it show?",
            ("B: What does the display say? | A: It's blinking and shows error {n}.", "the display shows error {n}"),
            (
                "A: There's an error {n} now and then. | B: That's only the {w}, easy to fix.",
                "{B} blames the {w} for error {n}",
            ),
            words="sensor, fan, fuse, plug",
        ),
    ],
    [
        "A: My neighbour {x} paid {k} for a new one. | B: Mending is cheaper, believe me.",
        "B: I had the same trouble with one from {y}. | A: They don't build them like they used to.",
    ],
)

PARTY = topic(
    "party",
    "birthday party, garden party, farewell party, barbecue, picnic, dinner",
    [
        (
            "A: Hey {B}, I'm planning a {T} in {L}. Want to help? | B: Of course, {A}, count me in!",
            "{B} helps {A} plan a {T} in {L}",
        ),
        (
            "A: {B}, are you coming to my {T}? | B: I'd love to, {A}. Is it in {L} again? | A: Yes, as always.",
            "{A} invites {B} to a {T} in {L}",
        ),
        (
            "A: We should throw a {T} for {x}, {B}. | B: Nice idea, {A}. Let's have it in {L}.",
            "{A} and {B} organise a {T} for {x} in {L}",
        ),
    ],
    [
        fact(
            "number of guests",
            "How many guests will come?",
            ("B: How many people will be there? | A: I've counted {n} guests so far.", "{n} guests are expected"),
            (
                "A: I sent out {n} cards last night. | B: Wow, that's going to be a crowd.",
                "{A} has already sent {n} invitations",
            ),
            numbers=(11, 180),
        ),
        fact(
            "cake",
            "Who bakes the cake?",
            ("A: Who could bake the {w} cake? | B: Ask {x}, nobody does it better.", "{x} should bake the {w} cake"),
            ("B: I'll get a {w} cake from {x}. | A: Lovely, everybody likes that.", "{B} gets a {w} cake from {x}"),
            value="x",
            words="lemon, cherry, carrot, chocolate, plum",
        ),
        fact(
            "budget",
            "How much may be spent?",
            (
                "B: What can we spend on food? | A: Not more than {n}, drinks included.",
                "food and drinks may cost at most {n}",
            ),
            ("A: I'm paying {n} for the hall. | B: Let me give you half of that.", "{B} shares the {n} for the hall"),
        ),
        fact(
            "weight",
            "How many grams does the recipe need?",
            (
                "B: How much {w} goes into the salad? | A: Take {n} grams, that's plenty.",
                "the salad needs {n} grams of {w}",
            ),
            ("A: Could you buy {n} grams of {w}? | B: I'll get it on the way home.", "{B} buys {n} grams of {w}"),
            numbers=(100, 950),
            words="rice, cheese, pasta, beans, corn, tuna",
        ),
        fact(
            "name",
            "Who plays the music?",
            (
                "A: What do we do about music? | B: {x} has a band, they play for {n}.",
                "{x} and the band will play for {n}",
            ),
            (
                "B: Shall {x} bring the guitar? | A: No, I'd rather have a quiet evening.",
                "{A} does not want {x} to play the guitar",
            ),
            value="x",
        ),
        fact(
            "bus",
            "Which bus will the guests take?",
            (
                "B: How do people without a car get there? | A: With bus {n} from {y}.",
                "bus {n} from {y} brings those without a car",
            ),
            (
                "B: Parking is awful there. | A: Then I'll tell all to take bus {n}.",
                "everybody is told to come by bus {n}",
            ),
            numbers=(10, 99),
        ),
        fact(
            "chairs",
            "How many chairs are needed?",
            ("A: I'm short of chairs. | B: {x} can lend us {n} from the club.", "{x} lends them {n} chairs"),
            (
                "B: Do you need chairs from my place? | A: Yes, please bring {n} and a {w}.",
                "{B} brings {n} chairs and a {w}",
            ),
            numbers=(11, 99),
            words="table, tent, grill, lamp",
        ),
    ],
    [
        "B: Remember when {x} fell into the pool? | A: How could I forget that!",
        "A: Last year in {y} I spent {k}, never again. | B: That was a bit over the top.",
    ],
)

LOST = topic(
    "lost property",
    "umbrella, suitcase, backpack, wallet, camera, violin, scarf",
    [
        (
            "A: Good morning, my name is {A}, I lost my {T} in {L}. | "
            "B: Good morning. {B} here, let's see what I can do.",
            "{A} lost a {T} in {L} and asks {B} for help",
        ),
        (
            "A: Is this the lost property office in {L}? It's about a {T}. | "
            "B: Yes, you're talking to {B}. And you are? | "
            "A: {A}.",
            "{A} calls {B} at the office in {L} about a missing {T}",
        ),
        (
            "B: Hello, {B} from the lost property office in {L}. Is that {A}? | A: Yes, it is. | "
            "B: I think I have your {T} here.",
            "{B} has found {A}'s {T} in {L}",
        ),
    ],
    [
        fact(
            "bus",
            "On which line was it lost?",
            (
                "B: Where did you see it last? | A: I was on line {n}, near the back door.",
                "it was last seen on line {n}",
            ),
            ("B: A driver of line {n} handed one in. | A: That must be mine!", "the driver of line {n} handed it in"),
            numbers=(10, 99),
        ),
        fact(
            "shelf",
            "On which shelf is it?",
            ("A: So is it there? | B: Yes, there it is, on shelf {n}.", "{B} found it on shelf {n}"),
            (
                "B: I've put it on shelf {n} for you. | A: I'll collect it on {w}.",
                "{A} will collect it from shelf {n} on {w}",
            ),
            numbers=(100, 999),
            words="Monday, Tuesday, Thursday, Friday",
        ),
        fact(
            "finder",
            "Who found it?",
            ("A: Who brought it to you? | B: A passenger called {x}.", "a passenger called {x} brought it back"),
            (
                "A: I want to thank the person who found it. | B: It was {x}, who lives in {y}.",
                "{A} wants to thank {x} from {y}",
            ),
            value="x",
        ),
        fact(
            "fee",
            "How much is the fee?",
            (
                "A: Does it cost anything? | B: There's a fee of {n}, you can pay by card.",
                "the fee of {n} can be paid by card",
            ),
            (
                "B: You owe us {n} for keeping it. | A: That's more than it's worth, so keep it.",
                "{A} refuses to pay {n} for it",
            ),
            numbers=(11, 99),
        ),
        fact(
            "case number",
            "What is the case number?",
            ("B: I've opened a case, please write down {n}. | A: Thanks, I have it.", "the case has number {n}"),
            (
                "A: I filled in the form, case {n}. | B: I can't see it yet, please try again on {w}.",
                "{A} should ask again about case {n} on {w}",
            ),
            numbers=(1000, 9999),
            words="Wednesday, Saturday, Sunday",
        ),
        fact(
            "number",
            "How much money was in it?",
            (
                "B: Was there anything special about it? | A: Yes, a {w} and {n} in cash.",
                "a {w} and {n} in cash were with it",
            ),
            (
                "B: There is a {w} inside. | A: Right, and a ticket with number {n}.",
                "a {w} and ticket {n} prove that it belongs to {A}",
            ),
            words="key ring, red ribbon, diary, photo, silver pen",
        ),
        fact(
            "address",
            "To which street will it be sent?",
            (
                "A: Could you send it to me? | B: Yes, to which address? | A: {y} Street {n}.",
                "{B} sends it to {y} Street {n}",
            ),
            (
                "B: Shall we post it? | A: No, give it to my sister {x}, who works in {y}.",
                "{x} who works in {y} will fetch it",
            ),
            value="y",
            numbers=(11, 99),
        ),
    ],
    [
        "B: Yesterday one {x} lost the very same thing. | A: What a strange coincidence.",
        "A: I already asked in {y}, they sent me to room {k}. | B: They never know anything there.",
    ],
)

TOPICS = (FLAT, REPAIR, PARTY, LOST)
