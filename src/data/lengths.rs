//! How long the examples are, by the model's tokenizer or, where that is not on this machine, by the size of the text.

use std::path::Path;

use crate::checkpoint::source::{ModelSource, model};
use crate::checkpoint::text::Text;
use crate::data::examples::{self, Rows};
use crate::error::{Error, Result};
use crate::spec::model::Model;
use crate::spec::run::{BUILTIN, Data, RunConfig, TokenLengths};

/// Token lengths of a data set, with a note on how they were found.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    /// Token lengths of the training and the validation rows.
    pub lengths: TokenLengths,
    /// A sentence for the user: rows that teach nothing, or lengths that are an estimate.
    pub note: Option<String>,
}

impl From<TokenLengths> for Counted {
    fn from(lengths: TokenLengths) -> Self {
        Self { lengths, note: None }
    }
}

/// The data's examples under a model's tokenizer.
fn rows(model: &Model, data: &Data) -> Result<Rows> {
    Ok(texts_and_rows(model, data)?.1)
}

fn texts_and_rows(model: &Model, data: &Data) -> Result<(Text, Rows)> {
    let source = ModelSource::find(&model.name)?;
    let text = Text::open(&source, &model.spec, &model.name)?;
    let rows = Rows::read(data, &text, model.spec.vocab_size)?;
    Ok((text, rows))
}

/// Lengths of the data's examples under a model's tokenizer.
pub(crate) fn lengths(model: &Model, data: &Data) -> Result<TokenLengths> {
    Ok(rows(model, data)?.lengths())
}

/// Lengths of a run's examples, as [`lengths_or_estimate`] has them. Rows from which the run learns nothing are said; if
/// there are no others, it is an error.
pub(crate) fn lengths_of_run(model: &Model, run: &RunConfig) -> Result<Counted> {
    match texts_and_rows(model, &run.data) {
        Ok((text, rows)) => {
            let (without, all) = (rows.untrained(run)?, rows.train.len());
            let cut = run.recipe.max_seq_length;
            let masked = (without > 0).then(|| format!(
                "{without} of {all} rows have no target tokens: their masked prompts fill the {cut} tokens of `max_seq_length`"
            ));
            let endless = (!text.has_end()).then(|| {
                format!(
                    "`{}` names no end-of-text token: no row ends with one, and the model will not learn to stop",
                    model.name
                )
            });
            let note = masked.into_iter().chain(endless).reduce(|a, b| format!("{a}\n{b}"));
            Ok(Counted { lengths: rows.lengths(), note })
        }
        Err(Error::NoWeights { .. } | Error::NoTokenizer { .. }) if run.data.train().as_os_str() != BUILTIN => {
            estimate(&run.data)
        }
        Err(error) => Err(error),
    }
}

/// [`lengths`], or an estimate where the tokenizer is not on this machine, which is said. The rows that ship stand for no
/// one's data, so with another model they are not estimated.
pub(crate) fn lengths_or_estimate(model: &Model, data: &Data) -> Result<Counted> {
    match lengths(model, data) {
        Err(Error::NoWeights { .. } | Error::NoTokenizer { .. }) if data.train().as_os_str() != BUILTIN => {
            estimate(data)
        }
        counted => Ok(counted?.into()),
    }
}

/// Lengths without the model's tokenizer: by the one that ships, of the rows that ship, and else by the size of the text.
pub(crate) fn estimate(data: &Data) -> Result<Counted> {
    if data.train().as_os_str() == BUILTIN {
        return Ok(lengths(&model(BUILTIN)?, data)?.into());
    }
    let validation = data.valid().map(estimated_lengths).transpose()?.unwrap_or_default();
    let lengths = TokenLengths::new(estimated_lengths(data.train())?).with_validation(validation);
    let note = "the tokenizer is not on this machine; lengths are estimated from the text size";
    Ok(Counted { lengths, note: Some(note.into()) })
}

/// Bytes of text that one token stands for, where no tokenizer is at hand: 3.5 to 4.5 in English prose under
/// vocabularies of 32,000 to 152,000; the lower end gives longer examples, and so never flatters a plan.
const BYTES_PER_TOKEN: usize = 3;

/// Lengths estimated from the size of the rows' text, by the bundled tokenizer's reader but without a tokenizer.
fn estimated_lengths(data: &Path) -> Result<Vec<u32>> {
    let text = crate::store::read_text(data)?;
    let mut lengths = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let row = examples::parsed(line, data, i + 1)?;
        lengths.push(text_bytes(&row).div_ceil(BYTES_PER_TOKEN) as u32);
    }
    if lengths.is_empty() {
        return Err(Error::Data { path: data.into(), reason: "it has no rows".into() });
    }
    Ok(lengths)
}

/// Bytes of all strings in a row; tokens that are given as such count as themselves.
fn text_bytes(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(s) => s.len(),
        serde_json::Value::Array(all) => all.iter().map(text_bytes).sum(),
        serde_json::Value::Object(map) => map.values().map(text_bytes).sum(),
        serde_json::Value::Number(_) => BYTES_PER_TOKEN,
        _ => 0,
    }
}
