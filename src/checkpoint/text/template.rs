//! The chat template of a model: parsed once, rendered within bounds.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error as TemplateError, ErrorKind, context};

use crate::checkpoint::text::message::{LONGEST_TEXT, Message};
use crate::checkpoint::text::methods::python_methods;
use crate::memory::bounded;
use crate::units::Bytes;

/// Longest template, bytes: several times the longest that is published.
const LONGEST: usize = 128 << 10;
/// Instructions of one rendering: hundreds of turns of the longest templates take a hundredth of it.
const FUEL: u64 = 10_000_000;
/// Bytes that a rendering may leave behind, such as tables that a library makes at its first use.
const LEFT_BEHIND: usize = 16 << 10;
/// Its name in messages, which add the line.
const NAME: &str = "chat template";

/// A parsed chat template, ready to render.
pub(super) struct Template {
    environment: Environment<'static>,
}

/// What a template is told beside the chat.
#[derive(Clone, Debug, Default)]
pub(super) struct SpecialTokens {
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
}

impl Template {
    /// Parses a template; to be done within bounds, as rendering is.
    pub(super) fn parse(source: String) -> Result<Self, String> {
        if source.len() > LONGEST {
            let (long, most) = (Bytes(source.len() as u64), Bytes(LONGEST as u64));
            return Err(format!("the chat template is {long}, and at most {most} are allowed"));
        }
        let mut environment = Environment::new();
        // As transformers renders: block lines vanish, and Python's string methods work.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failure(&e))?);
        environment.set_unknown_method_callback(python_methods);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", |message: String| -> Result<String, TemplateError> {
            Err(TemplateError::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, TemplateError> {
            let bad = |e: jiff::Error| TemplateError::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
            jiff::fmt::strtime::format(&format, &jiff::ZonedDateTime::now()).map_err(bad)
        });
        environment.add_template_owned(NAME, without_generation(&source)).map_err(|e| failure(&e))?;
        Ok(Self { environment })
    }

    /// Renders a chat as text.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tokens: &SpecialTokens,
    ) -> Result<String, String> {
        let before = bounded::left();
        let text = self.rendered(messages, add_generation_prompt, tokens)?;
        // Only a value that holds itself is still there, and every row would leave another.
        if before.saturating_sub(bounded::left()) > text.capacity() + LEFT_BEHIND {
            return Err("the chat template fails: it creates a value that contains itself".into());
        }
        Ok(text)
    }

    fn rendered(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tokens: &SpecialTokens,
    ) -> Result<String, String> {
        // A token that the tokenizer does not have is undefined, as for transformers, and renders as nothing.
        let token = |token: &Option<String>| token.as_deref().map_or(minijinja::Value::UNDEFINED, Into::into);
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt,
            bos_token => token(&tokens.bos),
            eos_token => token(&tokens.eos),
        };
        let mut written = Written::default();
        let template = self.environment.get_template(NAME).map_err(|e| failure(&e))?;
        let rendered = template.render_captured_to(context, &mut written).map(drop);
        if written.full {
            let most = Bytes(LONGEST_TEXT as u64);
            return Err(format!("the chat template renders more than {most} for one chat"));
        }
        rendered.map_err(|e| failure(&e))?;
        String::from_utf8(written.text).map_err(|e| e.to_string())
    }
}

/// A template in which `{% generation %}` and `{% endgeneration %}`, transformers' marks around what an assistant says, are
/// a block that prints what is in it.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start..start + length + 2]);
        let word = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out += before;
        match word {
            "generation" => out += &tag.replacen("generation", "if true", 1),
            "endgeneration" => out += &tag.replacen("endgeneration", "endif", 1),
            _ => out += tag,
        }
        rest = &rest[start + length + 2..];
    }
    out + rest
}

fn failure(error: &TemplateError) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => format!("the chat template takes more than {FUEL} instructions"),
        _ => format!("the chat template fails: {}", bounded::shortened(&error.to_string())),
    }
}

/// What was rendered, up to the longest text.
#[derive(Default)]
struct Written {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.full |= self.text.len() + bytes.len() > LONGEST_TEXT;
        if self.full {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
