//! What to do about an error, and how a process ends with it.

use std::io;

use crate::error::Error;

impl Error {
    /// The exit code: 1 where the answer is "no", 2 where there is no answer, 130 where it was interrupted (by another signal
    /// than SIGINT, whose number is not known here, `main` takes 128 and that).
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::DoesNotFit { .. } | Self::NothingFits { .. } | Self::TooSlow { .. } | Self::OutOfMemory { .. } => 1,
            Self::Interrupted { .. } => 130,
            _ => 2,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the spelling; a relative path in a run file is relative to that file".into())
            }
            Self::Parse { hint, .. } => hint.clone(),
            Self::UnknownArchitecture { supported, .. } => Some(format!("supported: {supported}")),
            Self::UnknownModel { close, hub, .. } => {
                let asked = hub.as_ref().map(|reason| format!("on the hub: {reason}"));
                let near = (!close.is_empty()).then(|| format!("did you mean {}?", close.join(", ")));
                let other = close.is_empty().then(|| "give a folder with config.json, *.safetensors and tokenizer.json, or a name from `headroom doctor --models`".into());
                Some(near.into_iter().chain(other).chain(asked).collect::<Vec<String>>().join("\nhint: "))
            }
            Self::Hub { remedy, .. } => remedy.clone(),
            Self::NoWeights { meant: Some(id), .. } => {
                Some(format!("its name on the hub is `{id}`: by that name it is downloaded when it is trained"))
            }
            Self::NoWeights { name, .. } => {
                Some(format!("fetch them with `hf download {name}`, or give a folder with `--model DIR`"))
            }
            Self::NoTokenizer { folder, model_file: true } => Some(format!(
                "its tokenizer.model is not read; this writes a tokenizer.json: python -c \"from transformers import \
                 AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\"",
                folder.display()
            )),
            Self::NoTokenizer { .. } => Some("put the model's tokenizer.json into the folder".into()),
            Self::UnknownMachine { known, .. } => Some(format!("known: {known}; or give --ram alone")),
            Self::NotFinite { .. } => {
                Some("lower `learning_rate`, or set `max_grad_norm`; the last checkpoint is intact".into())
            }
            Self::Schema { .. } => Some("move it aside; a new file is started and the old one is kept".into()),
            Self::RunExists { .. } => Some("continue it with `--resume`, or choose another folder with `--out`".into()),
            Self::NotEmpty { .. } => Some("choose an empty or new folder with `--out`".into()),
            Self::InUse { .. } => Some("wait until it has ended, or choose another folder with `--out`".into()),
            Self::Damaged { remedy, .. } => Some(remedy.clone()),
            Self::Changed { .. } => {
                Some("restore the files, or continue on the changed ones with `--accept-changes`".into())
            }
            Self::Interrupted { resume, .. } => resume.as_ref().map(|resume| format!("continue with `{resume}`")),
            Self::Unread { unread, of } if unread.len() < *of => Some("the page shows the others".into()),
            Self::Exists { .. } => Some("choose another path with `--out`, or replace it with `--force`".into()),
            Self::NoSuchExport { .. } => {
                Some("`--format fused` works for every model: a folder that transformers and mlx-lm load".into())
            }
            Self::OutOfMemory { remedy, .. } | Self::Gpu { remedy, .. } => Some((*remedy).into()),
            Self::NoMetal { .. } => Some("`--device cpu` computes on the processor".into()),
            Self::DoesNotFit { .. } => Some("`headroom plan` finds a run that fits; `--force` trains anyway".into()),
            Self::NothingFits { larger, .. } => {
                let larger = larger.as_ref().map(|mac| format!("the smallest Mac that fits it: {mac}"));
                let smaller = Some("`headroom plan` without `--model` finds what fits here".to_owned());
                Some(larger.into_iter().chain(smaller).collect::<Vec<_>>().join("\nhint: "))
            }
            Self::TooSlow { .. } => {
                Some("allow more time with `--time-limit`, or reduce `--seq`, `--epochs` or the model".into())
            }
            _ => None,
        }
    }
}
