//! What chat templates call on values and minijinja does not have.

use minijinja::{Error as TemplateError, ErrorKind};

/// The string methods of Python that chat templates use.
pub(super) fn python_methods(
    _: &mut minijinja::State<'_, '_>,
    value: &minijinja::Value,
    method: &str,
    args: &[minijinja::Value],
) -> Result<minijinja::Value, TemplateError> {
    let unknown = || TemplateError::new(ErrorKind::UnknownMethod, format!("no method `{method}`"));
    if let (Ok(entries), "items") = (value.try_iter(), method) {
        let pairs = entries.map(|k| minijinja::Value::from(vec![k.clone(), value.get_item(&k).unwrap_or_default()]));
        return Ok(pairs.collect::<Vec<_>>().into());
    }
    if method == "get" {
        let key = args.first().ok_or_else(unknown)?;
        let found = value.get_item(key)?;
        return Ok(if found.is_undefined() { args.get(1).cloned().unwrap_or_default() } else { found });
    }
    let text = value.as_str().ok_or_else(unknown)?;
    let arg = |i: usize| args.get(i).and_then(|a| a.as_str());
    let stripped = |c: char| arg(0).map_or(c.is_whitespace(), |set| set.contains(c));
    Ok(match (method, arg(0)) {
        ("strip", _) => text.trim_matches(stripped).into(),
        ("lstrip", _) => text.trim_start_matches(stripped).into(),
        ("rstrip", _) => text.trim_end_matches(stripped).into(),
        ("upper", _) => text.to_uppercase().into(),
        ("lower", _) => text.to_lowercase().into(),
        ("title" | "capitalize", _) => {
            let mut chars = text.chars();
            chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default().into()
        }
        ("startswith", Some(prefix)) => text.starts_with(prefix).into(),
        ("endswith", Some(suffix)) => text.ends_with(suffix).into(),
        ("split", Some(separator)) => text.split(separator).map(minijinja::Value::from).collect::<Vec<_>>().into(),
        ("split", None) => text.split_whitespace().map(minijinja::Value::from).collect::<Vec<_>>().into(),
        ("replace", Some(from)) => text.replace(from, arg(1).ok_or_else(unknown)?).into(),
        _ => return Err(unknown()),
    })
}
