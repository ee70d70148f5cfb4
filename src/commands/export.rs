//! `export`: hands an adapter or a whole model to other tools.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::checkpoint::adapter::AdapterFile;
use crate::checkpoint::hub::{Part, Repo};
use crate::checkpoint::source::ModelSource;
use crate::cli::export::ExportArgs;
use crate::commands::output::{Answer, Output};
use crate::commands::{fetch, inputs, interrupt};
use crate::error::{Error, Result};
use crate::export::{Exported, Request, export};
use crate::spec::run::BUILTIN;
use crate::spec::run::export_format::ExportFormat;

/// Runs `headroom export`: writes a model or an adapter for another tool.
pub(crate) fn run(args: &ExportArgs, output: &Output) -> Result<Answer> {
    let request = request(args)?;
    fetch::model(&request.model, Part::Weights, output)?;
    let interrupted = interrupt::interrupted();
    let bar = output.bar(0);
    let exported = export(&request, &mut |done, total| {
        bar.set_length(total >> 20);
        bar.set_position(done >> 20);
        bar.set_message("MiB");
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { kept: "nothing was written".into(), resume: None });
        }
        Ok(())
    });
    bar.finish_and_clear();
    let exported = exported?;
    output.answer(&exported, |_| text(&exported))?;
    exported.notes.iter().for_each(|note| output.note(&format!("note: {note}")));
    Ok(Answer::Yes)
}

/// The base and the adapter: of a run folder, of an adapter folder, or as given.
fn request(args: &ExportArgs) -> Result<Request> {
    let (of_run, adapter) = match &args.source {
        Some(folder) => inputs::run_or_adapter(folder)?,
        None => (None, None),
    };
    let named = || adapter.as_deref().map(named_base).transpose().map(Option::flatten);
    let model = match args.model.clone().or(of_run.map(|run| run.model)) {
        Some(model) => model,
        None => {
            named()?.ok_or_else(|| Error::invalid("--model", "absent", "given; nothing else names the base model"))?
        }
    };
    Ok(Request { model, adapter, format: args.format, weights: args.weights, out: args.out.clone(), force: args.force })
}

/// The base of an adapter by its own description, which gives no more than a hub id or the last name of a folder.
fn named_base(folder: &Path) -> Result<Option<String>> {
    let Some(base) = AdapterFile::read(folder)?.about.base else { return Ok(None) };
    // A folder of that name in the working folder may be another model.
    let ambiguous = base != BUILTIN && !base.contains('/') && Path::new(&base).exists();
    match ModelSource::find(&base) {
        Ok(_) if !ambiguous => Ok(Some(base)),
        // It may be on the hub.
        Err(Error::NoWeights { .. }) if Repo::parse(&base).is_some() => Ok(Some(base)),
        Ok(_) | Err(Error::NoWeights { .. } | Error::Read { .. }) => {
            let must = format!("given; the adapter names its base `{base}`, which is not a location");
            Err(Error::invalid("--model", "absent", must))
        }
        Err(other) => Err(other),
    }
}

/// What was written, and the line that uses it.
fn text(exported: &Exported) -> String {
    let (out, model) = (exported.out.display(), &exported.model);
    let what = match exported.format {
        ExportFormat::Peft => "adapter for PEFT",
        ExportFormat::MlxLm => "adapter for mlx-lm",
        ExportFormat::Fused => "merged model for transformers and mlx-lm",
        ExportFormat::Gguf => "model for llama.cpp and Ollama",
        ExportFormat::GgufAdapter => "adapter for llama.cpp and Ollama",
    };
    let usage = match exported.format {
        ExportFormat::Peft => format!("PeftModel.from_pretrained(model, \"{out}\")"),
        ExportFormat::MlxLm => format!("mlx_lm.generate --model {model} --adapter-path {out} --prompt \"...\""),
        ExportFormat::Fused => format!("mlx_lm.generate --model {out} --prompt \"...\""),
        ExportFormat::Gguf => format!("llama-cli -m {out}, or in an Ollama Modelfile: FROM {out}"),
        ExportFormat::GgufAdapter => {
            format!("llama-cli -m BASE.gguf --lora {out}, or in an Ollama Modelfile: ADAPTER {out}")
        }
    };
    format!("{what}: {out} ({})\n{usage}\n", exported.bytes)
}
