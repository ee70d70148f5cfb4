//! Tries a model, with or without an adapter: one answer to one prompt.

use candle_transformers::generation::{LogitsProcessor, Sampling};

use super::candle::{adapter, adapter_file::AdapterFile, device, model::Decoder, model::MicroBatch};
use super::source::ModelSource;
use super::text::{Message, Text};
use crate::error::{Error, Result};
use crate::spec::run::{Data, RunConfig};

/// How to choose the next token.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Keep only the likeliest tokens up to this share.
    pub top_p: Option<f64>,
    /// Of the drawing.
    pub seed: u64,
    /// At most this many.
    pub max_tokens: usize,
}

/// A model ready to answer.
pub struct Generator {
    decoder: Decoder,
    text: Text,
    max_positions: usize,
}

impl Generator {
    /// Loads a model and, if given, an adapter, in PEFT's layout or mlx-lm's.
    pub fn open(model: &str, adapter_folder: Option<&std::path::Path>) -> Result<Self> {
        let source = ModelSource::find(model)?;
        let spec = source.spec()?;
        let text = Text::open(&source, &spec, model)?;
        let mut run = RunConfig {
            model: model.into(),
            data: Data::builtin(),
            engine: Default::default(),
            seed: 0,
            recipe: Default::default(),
            execution: Default::default(),
        };
        run.recipe.max_seq_length = spec.max_position_embeddings;
        if let Some(folder) = adapter_folder {
            run.recipe.lora = AdapterFile::read(folder)?.lora();
        }
        let mut decoder = Decoder::load(&source.weights()?, &spec, &run, &device())?;
        if let Some(folder) = adapter_folder {
            adapter::load(&mut decoder, &run, folder)?;
        }
        Ok(Self { decoder, text, max_positions: spec.max_position_embeddings })
    }

    /// The model's answer. With a chat template the prompt is a user's message, without one it is continued.
    pub fn answer(&self, prompt: &str, choice: Choice) -> Result<String> {
        let asked = Message { role: "user".into(), content: prompt.into(), rest: Default::default() };
        let mut tokens =
            if self.text.has_template() { self.text.question(&[asked])? } else { self.text.plain(prompt)?.tokens };
        if !self.text.has_template() && tokens.last().is_some_and(|t| self.text.eos_ids.contains(t)) {
            tokens.pop();
        }
        if tokens.is_empty() || tokens.len() >= self.max_positions {
            let must = format!("between 1 and {} tokens long", self.max_positions - 1);
            return Err(Error::invalid("prompt", format!("{} tokens long", tokens.len()), must));
        }
        let asked = tokens.len();
        let sampling = match (choice.temperature, choice.top_p) {
            (t, _) if t <= 0.0 => Sampling::ArgMax,
            (temperature, Some(p)) => Sampling::TopP { p, temperature },
            (temperature, None) => Sampling::All { temperature },
        };
        let mut next = LogitsProcessor::from_sampling(choice.seed, sampling);
        // No cache of keys and values: the answers are short, and the forward pass stays the trainer's own.
        while tokens.len() < (asked + choice.max_tokens).min(self.max_positions) {
            let rows = tokens.len();
            let batch =
                MicroBatch { tokens: tokens.clone(), examples: std::iter::once(0..rows).collect(), targets: vec![] };
            let logits = self.decoder.logits(&batch, &[rows as u32 - 1])?.squeeze(0)?;
            let token = next.sample(&logits)?;
            if self.text.eos_ids.contains(&token) {
                break;
            }
            tokens.push(token);
        }
        self.text.decode(&tokens[asked..])
    }
}
