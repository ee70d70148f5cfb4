//! Which entry of the catalogue a name means, and what is understood of a copy's name.

use std::sync::LazyLock;

use crate::error::{Error, Result};
use crate::spec::model::architecture::{Model, ModelSpec, SUPPORTED};
use crate::spec::model::catalogue::entries::{Entry, all};
use crate::spec::model::catalogue::names::{Said, Words, short};
use crate::spec::model::families::HYBRID;
use crate::spec::model::storage::{Block, Format, Storage};
use crate::spec::model::weights::Weights;
use crate::spec::run::LONGEST_NAME;

/// How alike two names must be to be offered for each other (Jaro-Winkler, 1 is equal).
const CLOSE: f64 = 0.8;

/// What a family must be like that is known and not supported yet.
const LATER: &str = "this family is not supported yet";

/// Families that are known and refused, by the words that their names begin with.
const REFUSED: [(&[&str], &str); 24] = [
    (&["qwen", "3.5"], HYBRID),
    (&["qwen", "3.6"], HYBRID),
    (&["qwen", "3", "next"], HYBRID),
    (&["qwen", "3", "omni"], LATER),
    (&["lfm", "2"], "it mixes convolutions with attention, and no model of them has been checked"),
    (&["lfm", "2.5"], "it mixes convolutions with attention, and no model of them has been checked"),
    (&["nvidia", "nemotron", "3"], HYBRID),
    (&["nemotron", "3"], HYBRID),
    (&["granite"], LATER),
    (&["falcon", "h1"], HYBRID),
    (&["gemma", "3n"], LATER),
    (&["gemma", "4"], LATER),
    (&["gemma", "2b"], LATER),
    (&["gemma", "7b"], LATER),
    (&["gemma", "1.1"], LATER),
    (&["smollm", "3"], LATER),
    (&["olmo"], LATER),
    (&["olmoe"], LATER),
    (&["ministral", "3"], LATER),
    (&["exaone"], LATER),
    (&["glm"], LATER),
    (&["mixtral"], LATER),
    (&["deepseek", "v"], LATER),
    (&["phi", "2"], LATER),
];

/// Words that say that a model is another than the one whose name it contains.
const ANOTHER: [&str; 17] = [
    "vl",
    "vision",
    "omni",
    "audio",
    "moe",
    "pruned",
    "draft",
    "eagle",
    "eagle3",
    "embedding",
    "reranker",
    "guard",
    "mini",
    "nano",
    "next",
    "minitron",
    "speculator",
];

/// How a name relates to the entry that it is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// It is the entry's own.
    Same,
    /// It is a mirror or a conversion of the entry, or of its base or its instruction-tuned sister: of one shape.
    Copy,
    /// It is another owner's and contains the entry's name: it is taken for a fine-tune of it.
    FineTune,
}

/// A name that was understood.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Understood {
    /// The model whose shape it has.
    pub entry: &'static Entry,
    /// Format that the name says.
    pub format: Option<Said>,
    /// How the name relates to the entry's.
    pub relation: Relation,
}

static SHAPES: LazyLock<Vec<(Words, &Entry)>> =
    LazyLock::new(|| all().iter().map(|entry| (Words::of(&entry.id), entry)).collect());

/// The model of this name: the whole id, or its part after the owner where only one model has it; case is ignored.
pub fn find(name: &str) -> Result<&'static Entry> {
    exact(name).ok_or_else(|| unknown(name))
}

fn exact(name: &str) -> Option<&'static Entry> {
    let wanted = name.trim();
    let whole = all().iter().find(|e| e.id.eq_ignore_ascii_case(wanted));
    let mut by_ending = all().iter().filter(|e| e.short_name().eq_ignore_ascii_case(wanted));
    match (whole, by_ending.next(), by_ending.next()) {
        (Some(entry), _, _) | (None, Some(entry), None) => Some(entry),
        _ => None,
    }
}

/// Why a name is not understood: a family that is refused, or no model that is known.
fn unknown(name: &str) -> Error {
    match refused(name) {
        Some(reason) => Error::UnknownArchitecture {
            model_type: name.trim().into(),
            reason: Some(reason.into()),
            supported: SUPPORTED,
        },
        None => Error::UnknownModel { name: name.into(), close: close_names(name), hub: None },
    }
}

/// Why a model of this name is refused although its family is known: `None` of any other name.
pub(crate) fn refused(name: &str) -> Option<&'static str> {
    let words = Words::of(name).shape;
    let begins =
        |begin: &[&str]| words.len() >= begin.len() && words.iter().zip(begin).all(|(word, wanted)| word == wanted);
    REFUSED.iter().find(|(begin, _)| begins(begin)).map(|(_, reason)| *reason)
}

/// The model that a name means, as people write it: with any owner, as a base or tuned, converted or quantised.
pub(crate) fn understand(name: &str) -> Result<Understood> {
    if let Some(entry) = exact(name) {
        return Ok(Understood { entry, format: None, relation: Relation::Same });
    }
    if name.len() > LONGEST_NAME || refused(name).is_some() {
        return Err(unknown(name));
    }
    let words = Words::of(name);
    let format = words.format;
    if let Some(entry) = alike(&words) {
        return Ok(Understood { entry, format, relation: Relation::Copy });
    }
    // Who made the model would have another name for it: then the name is misspelt.
    let by_another = |entry: &&Entry| {
        let owner = name.trim().split_once('/').map(|(owner, _)| owner);
        owner.is_some_and(|owner| !entry.id.split('/').next().unwrap_or_default().eq_ignore_ascii_case(owner))
    };
    match contained(&words).filter(by_another) {
        Some(entry) => Ok(Understood { entry, format, relation: Relation::FineTune }),
        None => Err(unknown(name)),
    }
}

/// The entry of the same shape, and of the same tuning where there is one.
fn alike(words: &Words) -> Option<&'static Entry> {
    let same: Vec<_> =
        SHAPES.iter().filter(|(known, _)| known.shape == words.shape && !words.shape.is_empty()).collect();
    let tuned = same.iter().find(|(known, _)| known.tuning == words.tuning);
    tuned.or(same.first()).map(|(_, entry)| *entry)
}

/// The entry whose whole name stands in this one, the longest first; nothing else in it may tell of another shape.
fn contained(words: &Words) -> Option<&'static Entry> {
    let mut best: Option<&(Words, &Entry)> = None;
    for known in SHAPES.iter().filter(|(known, _)| known.shape.iter().any(|word| size(word))) {
        let length = known.0.shape.len();
        let Some(at) = words.shape.windows(length).position(|part| part == known.0.shape) else { continue };
        let rest = words.shape[..at].iter().chain(&words.shape[at + length..]);
        let another = rest.clone().any(|word| size(word) || ANOTHER.contains(&word.as_str()));
        let better = best
            .is_none_or(|(b, _)| (length, known.0.tuning == words.tuning) > (b.shape.len(), b.tuning == words.tuning));
        if !another && better {
            best = Some(known);
        }
    }
    best.map(|(_, entry)| *entry)
}

/// Whether a word is a number of parameters, such as `8b`, `a3b` or `270m`.
fn size(word: &str) -> bool {
    let number = word.trim_start_matches('a').strip_suffix(['b', 'm']);
    number.is_some_and(|n| n.parse::<f64>().is_ok())
}

/// Up to three ids that look like `name`, likest first.
fn close_names(name: &str) -> Vec<String> {
    if name.len() > LONGEST_NAME {
        return Vec::new();
    }
    let words = Words::of(name).shape;
    let (wanted, joined) = (short(name).to_lowercase(), words.join("-"));
    let mut scored: Vec<(f64, &Entry)> = SHAPES
        .iter()
        .map(|(known, entry)| {
            let likeness = |a: &str, b: &str| strsim::jaro_winkler(a, b);
            let written = likeness(&wanted, &entry.short_name().to_lowercase());
            let meant = likeness(&joined, &known.shape.join("-"));
            // One family is nearer than another whatever the rest of the name.
            let family = if known.shape.first() == words.first() { 0.1 } else { 0.0 };
            (written.max(meant) + family, *entry)
        })
        .filter(|(score, _)| *score > CLOSE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.iter().take(3).map(|(_, e)| format!("`{}`", e.id)).collect()
}

impl Understood {
    /// The model as it is planned: the entry's shape in the format that the name says, and a sentence on what was
    /// understood where that is more than the entry's own name.
    pub(crate) fn model(&self, name: &str) -> Model {
        let name = name.trim();
        let (id, mut spec) = (&self.entry.id, self.entry.spec.clone());
        if self.relation == Relation::Same {
            return Model::new(id.clone(), spec);
        }
        let owned = name.contains('/') && !name.contains([' ', '(']);
        let (held, weights) = self.hold(&mut spec, owned);
        let of = match self.relation {
            Relation::FineTune => format!("`{name}` contains the name of `{id}`, and is taken for a fine-tune of it"),
            _ => format!("`{name}` is `{id}`"),
        };
        // What has no owner is no name on the hub, and what nothing here reads is of no use: then it is the entry itself.
        let named = if owned && weights.is_none() { name.to_owned() } else { id.clone() };
        let model = Model::new(named, spec);
        let understood = std::iter::once(format!("{of}{held}")).chain(model.understood.clone());
        Model { understood: Some(understood.collect::<Vec<_>>().join("; ")), weights, ..model }
    }

    /// Puts the spec into the format that the name says. Returns how that is said, and the weights to ask for where the
    /// name's own files are not to be read.
    fn hold(&self, spec: &mut ModelSpec, owned: bool) -> (String, Option<Weights>) {
        let Some(said) = self.format else { return (String::new(), None) };
        match said {
            Said::Dense(dtype) => {
                spec.dtype = dtype;
                spec.storage = Storage::uniform(dtype.into());
                (format!(" in {}", Weights::of(dtype.into()).name()), None)
            }
            Said::Affine { bits, group, mixed } => {
                let more = if mixed { "; the name says that some matrices have more" } else { "" };
                let text = format!(" in MLX's {bits} bits, groups of {group}{more}");
                let asked = by_bits(bits).filter(|_| !owned && group == 64);
                if asked.is_none() {
                    spec.storage = Storage {
                        out_in: true,
                        ..Storage::uniform(Format::Affine { bits, group, scales: spec.dtype })
                    };
                }
                (text, asked)
            }
            Said::Gguf(Some(block)) => {
                spec.storage = Storage { out_in: true, ..Storage::uniform(Format::Gguf(block)) };
                (format!(" in GGUF's {}", gguf_name(block)), None)
            }
            Said::Gguf(None) => (
                "; a GGUF repository has files in several formats: name one of them, or choose with `--weights`".into(),
                Some(Weights::Stored),
            ),
            Said::Other(format, bits) => {
                let weights = by_bits(if bits > 4 { 8 } else { 4 });
                let instead = weights.map_or("stored", Weights::name);
                (
                    format!(
                        "; no engine here reads {format} ({bits} bits), so the base is planned with `weights = \"{instead}\"`"
                    ),
                    weights,
                )
            }
        }
    }
}

fn by_bits(bits: u8) -> Option<Weights> {
    match bits {
        4 => Some(Weights::FourBit),
        8 => Some(Weights::EightBit),
        _ => None,
    }
}

fn gguf_name(block: Block) -> String {
    format!("{block:?}").to_uppercase()
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
