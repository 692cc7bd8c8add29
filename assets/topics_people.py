"""Topics among people: the doctor, a job interview, school, sports."""

from assets.topics import fact, topic

DOCTOR = topic(
    "appointment",
    "check-up, vaccination, blood test, dental cleaning, hearing test",
    [
        (
            "A: Hello, this is {A}. I need an appointment for a {T}. | "
            "B: Hello, {B} from the clinic in {L}. Let me look.",
            "{A} asks {B} at the clinic in {L} for a {T}",
        ),
        (
            "B: Clinic {L}, {B} speaking. | A: Hi, it's {A}. I have to cancel my {T}. | B: I see, thanks for calling.",
            "{A} cancels a {T} at clinic {L} with {B}",
        ),
        (
            "B: Good day {A}, {B} from the clinic in {L}. It's time for your {T}. | A: Oh, has a year gone by already?",
            "{B} from {L} reminds {A} of a {T}",
        ),
    ],
    [
        fact(
            "doctor",
            "Who is the doctor?",
            (
                "A: Is my usual doctor there? | B: No, doctor {x} is standing in this month.",
                "doctor {x} stands in this month",
            ),
            (
                "A: I'd prefer to see doctor {x}. | B: Fine, I've put that into the calendar.",
                "{A} will be seen by doctor {x}",
            ),
            value="x",
        ),
        fact(
            "room",
            "Which room is it?",
            (
                "A: Where do I have to go? | B: Please come to room {n}, past the {w}.",
                "the visit takes place in room {n} past the {w}",
            ),
            ("B: Wait in front of room {n}. | A: I know where that is.", "{A} has to wait outside room {n}"),
            words="stairs, lift, kitchen, garden",
        ),
        fact(
            "card number",
            "What is the number of the insurance card?",
            (
                "B: I need the number of your insurance card. | A: One moment, it's {n}.",
                "{A}'s insurance card has number {n}",
            ),
            (
                "B: Is your insurance number still {n}? | A: Yes, nothing has changed.",
                "{A} confirms insurance number {n}",
            ),
            numbers=(1000, 9999),
        ),
        fact(
            "price",
            "How much must be paid?",
            (
                "A: Will the insurance pay for it? | B: Only part of it, {n} is left for you.",
                "{A} has to pay {n} out of pocket",
            ),
            ("B: The extra {w} costs {n}. | A: Then I'll do without it.", "{A} declines the extra {w} for {n}"),
            numbers=(11, 400),
            words="scan, photo, massage, cream",
        ),
        fact(
            "tablets",
            "How many tablets are ordered?",
            (
                "A: I'm nearly out of tablets. | B: You'll get a new box of {n}.",
                "a new box of {n} tablets is prescribed",
            ),
            (
                "A: The {w} drops don't help. | B: Then change to tablets, {n} milligrams a day.",
                "{A} changes from {w} drops to {n} milligrams a day",
            ),
            numbers=(10, 500),
            words="herbal, bitter, green, cough",
        ),
        fact(
            "companion",
            "Who comes along?",
            (
                "B: Is anybody coming with you? | A: Yes, {x} will drive me there from {y}.",
                "{x} drives {A} there from {y}",
            ),
            ("A: Can {x} come with me? | B: No, only patients are let in at the moment.", "{x} may not come along"),
            value="x",
        ),
        fact(
            "branch",
            "In which branch is the laboratory?",
            (
                "A: Where do I get the results? | B: From our laboratory in {y}, on {w}.",
                "the results will be ready in {y} on {w}",
            ),
            (
                "B: You also need to go to our branch in {y}. | A: Is it near the {w}? | B: Yes, very.",
                "{A} also has to visit the branch in {y} near the {w}",
            ),
            value="y",
            words="station, museum, bridge, market, library",
        ),
    ],
    [
        "A: Last time I waited for {k} minutes. | B: That was a very busy day.",
        "B: Are you related to {x} from {y}? | A: No, we only share a doctor.",
    ],
)

JOB = topic(
    "job interview",
    "gardener, cook, driver, nurse, painter, librarian, baker",
    [
        (
            "B: Welcome, {A}, please sit down. I'm {B}. | A: Thank you. I'm here for the job as a {T} in {L}.",
            "{A} talks to {B} about a job as a {T} in {L}",
        ),
        (
            "A: Hi {B}, guess what, I've got an interview in {L}! | B: Well done, {A}! As a {T}, right? | A: Exactly.",
            "{A} tells {B} about an interview for {T} in {L}",
        ),
        (
            "B: {A}, it's {B}. You get the job as a {T}. | A: Wonderful! Is it the one in {L}? | B: Yes, that one.",
            "{B} hires {A} as a {T} in {L}",
        ),
    ],
    [
        fact(
            "pay",
            "How much is the pay?",
            ("A: What would the pay be? | B: It's {n} a week at the start.", "the pay starts at {n} a week"),
            ("B: How much would you like to earn? | A: I had {n} a week in mind.", "{A} hopes to earn {n} a week"),
            numbers=(200, 990),
        ),
        fact(
            "boss",
            "Who leads the team?",
            ("A: Who leads the team? | B: That's {x}, who came here from {y}.", "the team is led by {x} from {y}"),
            ("B: You'd take over from {x}. | A: I hope I can fill those shoes.", "{A} would replace {x}"),
            value="x",
        ),
        fact(
            "place",
            "Where was the last job?",
            (
                "B: Where have you worked so far? | A: I spent {n} months at a hotel in {y}.",
                "{A} worked {n} months at a hotel in {y}",
            ),
            (
                "B: Why did you leave your job in {y}? | A: The {w} was too hard on me.",
                "{A} left a job in {y} because of the {w}",
            ),
            value="y",
            numbers=(11, 99),
            words="travel, night work, noise, stress",
        ),
        fact(
            "staff",
            "How many people work there?",
            ("A: How many people work here? | B: There are {n} of us, and {k} more in {y}.", "{n} people work there"),
            (
                "B: We are looking for {n} new people. | A: That's a lot, you must be doing well.",
                "the firm is looking for {n} new people",
            ),
            numbers=(11, 990),
        ),
        fact(
            "desk",
            "In which room is the start?",
            (
                "A: Where do I start? | B: Come to room {n} on {w}, they'll show you around.",
                "the first day is {w} in room {n}",
            ),
            ("B: The second talk will be in room {n}. | A: I'll be there.", "a second talk follows in room {n}"),
            words="Monday, Tuesday, Wednesday, Thursday",
        ),
        fact(
            "bus",
            "Which bus goes there?",
            (
                "A: I don't drive. Is that a problem? | B: No, bus {n} stops at the gate.",
                "without a car {A} can take bus {n}",
            ),
            (
                "B: Do you have a licence? | A: Yes, I've driven bus {n} for years.",
                "{A} has experience of driving bus {n}",
            ),
            numbers=(10, 99),
        ),
        fact(
            "reference",
            "Who wrote the letter?",
            (
                "B: May I call somebody about you? | A: Sure, {x} knows me well, the number is {n}.",
                "{x} can be called on {n} for a reference",
            ),
            (
                "B: I've read the letter by {x}. | A: I hope it says only good things.",
                "{B} has read a letter from {x} about {A}",
            ),
            value="x",
            numbers=(1000, 9999),
        ),
    ],
    [
        "A: There were {k} others in the hall. | B: Don't worry about them.",
        "B: My friend {x} also went to {y} once. | A: And how did it go?",
    ],
)

SCHOOL = topic(
    "school",
    "chemistry, history, music, geography, drama, physics",
    [
        (
            "A: {B}, did you write down the {T} homework? | B: Yes, {A}, it's about the town of {L}.",
            "{A} asks {B} about the {T} homework on {L}",
        ),
        (
            "B: Good evening, {A}, I'm {B}, the {T} teacher. | "
            "A: Good evening. Is this about the trip to {L}? | "
            "B: Yes, it is.",
            "{T} teacher {B} speaks with {A} about a trip to {L}",
        ),
        (
            "A: Hi {B}, shall we do the {T} project together? | B: Gladly, {A}. Let's meet at my house in {L}.",
            "{A} and {B} do a {T} project together in {L}",
        ),
    ],
    [
        fact(
            "page",
            "Which page is it?",
            (
                "A: Which page do we have to read? | B: Page {n}, and learn the {w} on it.",
                "the {w} on page {n} must be learned",
            ),
            ("B: The picture on page {n} is wrong, skip it. | A: That makes it easier.", "page {n} can be skipped"),
            words="poem, table, song, map, rules",
        ),
        fact(
            "pupils",
            "How many pupils take part?",
            ("A: How many pupils are taking part? | B: I have {n} on my list.", "{n} pupils take part"),
            (
                "B: The bus has only {n} seats. | A: So some will have to stay here.",
                "only {n} seats are available on the bus",
            ),
            numbers=(11, 99),
        ),
        fact(
            "helper",
            "Who helps?",
            (
                "A: I don't get it at all. | B: Ask {x}, who had top marks last year.",
                "{x} with the top marks can help {A}",
            ),
            ("B: I need one more grown-up to help. | A: My partner {x} has time on {w}.", "{x} will help out on {w}"),
            value="x",
            words="Tuesday, Wednesday, Friday",
        ),
        fact(
            "cost",
            "How much has to be paid?",
            (
                "A: What do we have to pay? | B: It's {n} for each child, lunch included.",
                "each child pays {n} with lunch",
            ),
            (
                "A: The fee of {n} is a bit steep for us. | B: The school can help with that.",
                "the school helps {A} with the fee of {n}",
            ),
            numbers=(11, 300),
        ),
        fact(
            "room",
            "Which room is it?",
            ("A: Where is the lesson now? | B: They moved it to room {n}.", "the lesson has moved to room {n}"),
            ("B: I left my {w} in room {n}. | A: I'll bring it along.", "{A} fetches {B}'s {w} from room {n}"),
            words="jacket, ruler, lunch box, glasses",
        ),
        fact(
            "points",
            "How many points were there?",
            (
                "B: How was your test? | A: I got {n} points, much more than last time.",
                "{A} scored {n} points in a test",
            ),
            ("A: How many points do we need? | B: You pass with {n}.", "{n} points are enough to pass"),
            numbers=(11, 150),
        ),
        fact(
            "museum",
            "Where is the museum?",
            (
                "A: Will there be time for sights? | B: We'll stop at the {w} in {y}.",
                "a stop at the {w} in {y} is planned",
            ),
            (
                "B: Write something about the {w} of {y} too. | A: Good idea, I have photos of it.",
                "{A} adds photos of the {w} of {y}",
            ),
            value="y",
            words="castle, old mill, lighthouse, harbour, zoo",
        ),
    ],
    [
        "A: Is {x} ill again? | B: Yes, the flu is going round.",
        "B: Two years ago we went to {y} with {k} children. | A: That must have been hard work.",
    ],
)

SPORT = topic(
    "sport",
    "rowing, tennis, football, chess, hockey, judo",
    [
        (
            "A: {B}, are you ready for the {T} cup in {L}? | B: I've been training for months, {A}.",
            "{A} and {B} discuss the {T} cup in {L}",
        ),
        (
            "A: Hello {B}, I'd like to join your {T} club. | B: You're welcome, {A}. We train in {L}.",
            "{A} wants to join {B}'s {T} club in {L}",
        ),
        (
            "B: Did you watch the {T} final in {L}, {A}? | A: No, {B}, I missed it. Tell me all!",
            "{B} tells {A} about the {T} final in {L}",
        ),
    ],
    [
        fact(
            "winner",
            "Who won?",
            ("A: Who won last season? | B: It was {x}, with {n} points.", "{x} won last season with {n} points"),
            ("B: Nobody can beat {x} this year. | A: I wouldn't be so sure.", "{B} thinks that nobody can beat {x}"),
            value="x",
            numbers=(11, 300),
        ),
        fact(
            "fee",
            "How much is the fee?",
            (
                "A: How much does it cost to take part? | B: You pay {n} for the season.",
                "taking part costs {n} for the season",
            ),
            (
                "A: Is there a lower price for students? | B: Yes, they pay just {n}.",
                "students pay a reduced fee of {n}",
            ),
            numbers=(20, 400),
        ),
        fact(
            "shirt",
            "Which shirt number is it?",
            ("B: Which shirt number do you want? | A: If it's free, I'll take {n}.", "{A} chooses shirt number {n}"),
            (
                "A: Is number {n} taken? | B: Yes, {x} has been wearing it for ages.",
                "shirt number {n} already belongs to {x}",
            ),
            numbers=(10, 99),
        ),
        fact(
            "trainer",
            "Who is the coach?",
            (
                "A: Who is the coach now? | B: Since spring it's {x} from {y}.",
                "{x} from {y} has been the coach since spring",
            ),
            ("B: We fired {x} last week. | A: After the {w}? I saw that coming.", "coach {x} was fired after the {w}"),
            value="x",
            words="defeat, quarrel, accident, party",
        ),
        fact(
            "spectators",
            "How many people watched?",
            (
                "A: How many people came to watch? | B: There were {n} in the stands.",
                "{n} people watched from the stands",
            ),
            (
                "B: I could get {n} tickets for friends. | A: Keep one for me, please.",
                "{A} wants one of {B}'s {n} tickets",
            ),
            numbers=(100, 9999),
        ),
        fact(
            "gear",
            "How much does the gear cost?",
            ("A: Do I need my own {w}? | B: You can buy mine for {n}.", "{B} sells {A} a used {w} for {n}"),
            ("A: My {w} is ruined. | B: A new one is {n} in the shop in {y}.", "a new {w} costs {n} in {y}"),
            numbers=(20, 400),
            words="helmet, racket, jacket, bag, board",
        ),
        fact(
            "injured player",
            "Who is injured?",
            (
                "B: Bad news, {x} has a broken {w}. | A: Oh no, that's our best player.",
                "their best player {x} has a broken {w}",
            ),
            (
                "A: Is {x} still in hospital in {y}? | B: Yes, but the {w} is healing.",
                "{x} is recovering in {y} from a bad {w}",
            ),
            value="x",
            words="arm, knee, foot, shoulder, rib",
        ),
    ],
    [
        "B: In {y} I once came in at place {k}. | A: Everybody starts small.",
        "A: My uncle {x} used to play as well. | B: I think I remember that name.",
    ],
)

TOPICS = (DOCTOR, JOB, SCHOOL, SPORT)
