//! An adapter in the folder layout of PEFT or mlx-lm.

use crate::checkpoint::adapter::{self, About, Layout};
use crate::checkpoint::source::public_name;
use crate::error::Result;
use crate::export::place::Place;
use crate::export::request::Subject;
use crate::spec::run::export_format::ExportFormat;

/// Writes the subject's adapter in the layout of `format`, PEFT's or mlx-lm's.
pub(crate) fn write(subject: &Subject, format: ExportFormat, place: &Place) -> Result<Vec<String>> {
    let (file, spec) = (subject.adapter(format)?, &subject.spec);
    let layout = if format == ExportFormat::Peft { Layout::Peft } else { Layout::MlxLm };
    let pairs = file.paths().filter_map(|path| Some((path.to_owned(), file.adapter(path)?))).collect();
    let about = About { base: Some(public_name(&subject.name)), ..file.about.clone() };
    let staged = place.stage()?;
    adapter::write(staged.folder(), layout, &about, &pairs, spec)?;
    place.finish(staged)?;
    Ok(vec![])
}
