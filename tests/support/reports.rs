//! A task set: short reports from a plant, and questions of which the answer stands in the report.
//! Made from a seed, so that there are as many as are wanted and nobody has learnt them by heart.

use std::fmt::Write;

use serde_json::{Value, json};

/// What is asked, and what is right.
pub struct Report {
    pub text: String,
    pub question: String,
    pub answer: String,
}

const DEVICES: [&str; 12] = [
    "pump",
    "valve",
    "fan",
    "boiler",
    "freezer",
    "compressor",
    "conveyor",
    "furnace",
    "mixer",
    "crane",
    "generator",
    "chiller",
];
const PLACES: [&str; 12] = [
    "hall 1",
    "hall 2",
    "hall 4",
    "hall 7",
    "the cellar",
    "the loft",
    "the yard",
    "the boiler room",
    "the north wing",
    "the south wing",
    "the workshop",
    "the loading bay",
];
const STATES: [&str; 8] = [
    "is running",
    "has stopped",
    "is leaking",
    "is overheating",
    "makes a loud noise",
    "waits for a spare part",
    "was repaired",
    "shows an error",
];
const PEOPLE: [&str; 8] = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana"];

/// That many, always the same for the same seed.
pub fn reports(seed: u64, count: usize) -> Vec<Report> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| report(&mut random)).collect()
}

fn report(random: &mut fastrand::Rng) -> Report {
    let facts = random.usize(1..=4);
    let devices = random.choose_multiple(DEVICES, facts);
    let places = random.choose_multiple(PLACES, facts);
    let states = random.choose_multiple(STATES, facts);
    let people = random.choose_multiple(PEOPLE, facts);
    let mut text = String::new();
    for n in 0..facts {
        let (device, place, state, person) = (devices[n], places[n], states[n], people[n]);
        let sentence = match random.u32(..3) {
            0 => format!("The {device} in {place} {state}, says {person}. "),
            1 => format!("{person} reports from {place}: the {device} {state}. "),
            _ => format!("In {place} the {device} {state}; {person} looks after it. "),
        };
        text.push_str(&sentence);
    }
    let asked = random.usize(..facts);
    let (question, answer) = match random.u32(..3) {
        0 => (format!("Where is the {}?", devices[asked]), places[asked]),
        1 => (format!("Which device {}?", states[asked]), devices[asked]),
        _ => (format!("Who reports about the {}?", devices[asked]), people[asked]),
    };
    let answer = answer.trim_start_matches("the ").to_owned();
    Report { text: text.trim_end().to_owned(), question, answer }
}

impl Report {
    /// What stands in the template of [`task`].
    pub fn input(&self) -> String {
        format!("Report: {}\nQuestion: {}", self.text, self.question)
    }

    /// Whether this reply says what is right.
    pub fn is_right(&self, reply: &str) -> bool {
        serde_json::from_str::<Value>(reply).is_ok_and(|said| said == self.reply())
    }

    /// The right reply.
    pub fn reply(&self) -> Value {
        json!({"answer": self.answer})
    }
}

/// The task of `mcp.json`: three examples, then the report.
pub fn task() -> Value {
    let mut template =
        "Answer the question about the report with one or two words of it.\n".to_owned();
    for (text, question, answer) in [
        (
            "The lathe in hall 9 shows an error, says Ida. In the attic the lamp has stopped; Jon looks \
          after it.",
            "Where is the lamp?",
            "attic",
        ),
        ("Jon reports from hall 9: the press is leaking.", "Which device is leaking?", "press"),
        (
            "In the attic the saw is running; Kim looks after it. The lamp in hall 9 was repaired, says \
          Ida.",
            "Who reports about the lamp?",
            "Ida",
        ),
    ] {
        write!(template, "\nReport: {text}\nQuestion: {question}\n").unwrap();
        writeln!(template, "Answer: {{\"answer\": \"{answer}\"}}").unwrap();
    }
    template += "\n{{input}}\nAnswer:";
    let schema = json!({
        "type": "object", "properties": {"answer": {"type": "string", "maxLength": 24}},
        "required": ["answer"], "additionalProperties": false,
    });
    json!({"template": template, "schema": schema, "max_tokens": 24})
}
