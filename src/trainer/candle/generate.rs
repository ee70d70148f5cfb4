//! Tries a model, with or without an adapter: one answer to one prompt.

use std::path::Path;

use candle_core::Device;
use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::source::ModelSource;
use crate::checkpoint::text::{Message, Text};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::device::device;
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;
use crate::trainer::candle::nn::adapter;
use crate::trainer::candle::nn::decoder::Decoder;

/// Settings by which the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// Temperature of the sampling; 0 takes the likeliest token.
    pub temperature: f64,
    /// Share of the probability up to which only the likeliest tokens are kept.
    pub top_p: Option<f64>,
    /// Seed of the sampling.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
}

impl Choice {
    /// Refuses settings that are out of range.
    pub(crate) fn check(&self) -> Result<()> {
        if !(0.0..=10.0).contains(&self.temperature) {
            return Err(Error::invalid("--temperature", self.temperature, "between 0 and 10"));
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(Error::invalid("--top-p", p, "more than 0 and at most 1"));
        }
        if self.max_tokens == 0 {
            return Err(Error::invalid("--max-tokens", self.max_tokens, "at least 1"));
        }
        Ok(())
    }
}

/// A prompt, and how it is put to the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompt<'a> {
    /// The words.
    pub text: &'a str,
    /// Whether they are a user's message in the chat template, or a text to be continued; by default a message where the
    /// model has a template.
    pub chat: Option<bool>,
}

/// The answer of a model, with an adapter if one is given, in PEFT's layout or mlx-lm's.
pub(crate) fn answer(model: &str, adapter: Option<&Path>, prompt: Prompt<'_>, choice: Choice) -> Result<String> {
    choice.check()?;
    let source = ModelSource::find(model)?;
    let spec = source.spec()?;
    let text = Text::open(&source, &spec, model)?;
    let tokens = asked(&text, prompt)?;
    if tokens.is_empty() || tokens.len() >= spec.max_position_embeddings {
        let must = format!("between 1 and {} tokens long", spec.max_position_embeddings - 1);
        return Err(Error::invalid("prompt", format!("{} tokens long", tokens.len()), must));
    }
    let longest = tokens.len().saturating_add(choice.max_tokens).min(spec.max_position_embeddings);
    let decoder = decoder(&source, &spec, model, adapter, longest)?;
    text.decode(&continued(&decoder, &tokens, longest, choice, &text.eos_ids)?)
}

/// The tokens that follow `prompt`, up to one of `ends` or until there are `longest` with the prompt's.
fn continued(decoder: &Decoder, prompt: &[u32], longest: usize, choice: Choice, ends: &[u32]) -> Result<Vec<u32>> {
    let mut next = LogitsProcessor::from_sampling(choice.seed, sampling(choice));
    let (mut tokens, mut cache) = (prompt.to_vec(), decoder.cache());
    while tokens.len() < longest {
        let new = &tokens[cache.tokens()..];
        let logits = decoder.extend(new, &[new.len() as u32 - 1], &mut cache)?.squeeze(0)?;
        // The sampler's softmax is candle-nn's, which is built without Metal; and a row of logits is small.
        let logits = logits.to_device(&Device::Cpu)?;
        let token = next.sample(&logits)?;
        if ends.contains(&token) {
            break;
        }
        tokens.push(token);
    }
    Ok(tokens.split_off(prompt.len()))
}

/// Tokens of the prompt.
fn asked(text: &Text, prompt: Prompt<'_>) -> Result<Vec<u32>> {
    if prompt.chat.unwrap_or_else(|| text.has_template()) {
        let content = prompt.text.into();
        return text.question(&[Message { role: "user".into(), content, rest: Default::default() }]);
    }
    text.beginning(prompt.text)
}

/// Loads a model and its adapter for texts of at most `longest` tokens.
fn decoder(
    source: &ModelSource,
    spec: &ModelSpec,
    model: &str,
    adapter: Option<&Path>,
    longest: usize,
) -> Result<Decoder> {
    let mut run = RunConfig::of_model(model);
    run.recipe.max_seq_length = longest;
    if let Some(folder) = adapter {
        run.recipe.lora = AdapterFile::read(folder)?.lora();
    }
    let device = device();
    let on = (&device, Backend::of(&device));
    let mut decoder = Decoder::load(&source.weights()?, spec, &run, on)?;
    if let Some(folder) = adapter {
        adapter::load(&mut decoder, &run, folder)?;
    }
    Ok(decoder)
}

fn sampling(choice: Choice) -> Sampling {
    match (choice.temperature, choice.top_p) {
        (t, _) if t <= 0.0 => Sampling::ArgMax,
        (temperature, Some(p)) => Sampling::TopP { p, temperature },
        (temperature, None) => Sampling::All { temperature },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batches::MicroBatch;

    #[test]
    fn numbers_that_cannot_be_meant_are_refused() {
        let good = Choice { temperature: 0.7, top_p: Some(0.9), seed: 1, max_tokens: 8 };
        good.check().unwrap();
        Choice { temperature: 0.0, top_p: Some(1.0), ..good }.check().unwrap();
        let p = |p| Choice { top_p: Some(p), ..good };
        let t = |temperature| Choice { temperature, ..good };
        let cases = [
            (p(f64::NAN), "`--top-p` is NaN, but must be more than 0 and at most 1"),
            (p(0.0), "`--top-p` is 0,"),
            (p(-1.0), "`--top-p` is -1,"),
            (p(5.0), "`--top-p` is 5,"),
            (p(f64::INFINITY), "`--top-p` is inf,"),
            (t(f64::NAN), "`--temperature` is NaN, but must be between 0 and 10"),
            (t(-1.0), "`--temperature` is -1,"),
            (t(11.0), "`--temperature` is 11,"),
            (Choice { max_tokens: 0, ..good }, "`--max-tokens` is 0, but must be at least 1"),
        ];
        for (choice, expected) in cases {
            let error = choice.check().unwrap_err().to_string();
            assert!(error.contains(expected), "expected `{expected}` in `{error}`");
        }
    }

    fn cow() -> Prompt<'static> {
        Prompt { text: "What sound does a cow make?", chat: None }
    }

    #[test]
    fn a_prompt_is_a_message_or_a_beginning() {
        let source = ModelSource::find("builtin").unwrap();
        let text = Text::open(&source, &source.spec().unwrap(), "builtin").unwrap();
        let tokens = |chat| asked(&text, Prompt { chat, ..cow() }).unwrap();
        assert_eq!(tokens(None), tokens(Some(true)));
        assert!(tokens(Some(false)).len() < tokens(Some(true)).len());
        assert!(text.decode(&tokens(Some(false))).unwrap().ends_with("cow make?"));
    }

    #[test]
    fn any_number_of_tokens_may_be_allowed() {
        let all = |max_tokens| {
            let choice = Choice { temperature: 0.0, top_p: None, seed: 0, max_tokens };
            answer("builtin", None, cow(), choice).unwrap()
        };
        let answered = all(64);
        assert!(!answered.is_empty());
        assert_eq!(all(usize::MAX), answered);
    }
    /// As [`continued`], but by the whole forward pass for every token.
    fn by_whole_passes(decoder: &Decoder, prompt: &[u32], longest: usize, choice: Choice) -> Vec<u32> {
        let mut next = LogitsProcessor::from_sampling(choice.seed, sampling(choice));
        let mut tokens = prompt.to_vec();
        while tokens.len() < longest {
            let rows = tokens.len();
            let examples = std::iter::once(0..rows).collect();
            let batch = MicroBatch { tokens: tokens.clone(), examples, targets: vec![] };
            let logits = decoder.logits(&batch, &[rows as u32 - 1]).unwrap().squeeze(0).unwrap();
            tokens.push(next.sample(&logits).unwrap());
        }
        tokens.split_off(prompt.len())
    }

    #[test]
    fn the_text_is_that_of_the_whole_forward_pass() {
        let source = ModelSource::find("builtin").unwrap();
        let spec = source.spec().unwrap();
        let prompt = asked(&Text::open(&source, &spec, "builtin").unwrap(), cow()).unwrap();
        let longest = (prompt.len() + 80).min(spec.max_position_embeddings);
        assert!(longest > prompt.len() + 40);
        let decoder = decoder(&source, &spec, "builtin", None, longest).unwrap();
        for (temperature, top_p) in [(0.0, None), (1.0, None), (1.5, Some(0.9))] {
            let choice = Choice { temperature, top_p, seed: 3, max_tokens: 80 };
            // Without an end, so that there are many tokens.
            let cached = continued(&decoder, &prompt, longest, choice, &[]).unwrap();
            assert_eq!(cached, by_whole_passes(&decoder, &prompt, longest, choice), "{choice:?}");
        }
    }
}
