//! Python's methods on the strings, lists and dicts of a chat template: those of minijinja-contrib, which pays for what
//! grows with the template's fuel.
//!
//! Ours is what that does otherwise than Python and a template may well ask for: `title` begins a word after any
//! character without case (so `they're` becomes `They'Re`), an empty separator is an error, and `sep`, `maxsplit` and
//! `keepends` may be given by name. What it lacks is an error too: the bounds of `find`, `count` and `startswith`, and
//! methods such as `rsplit` and `removeprefix`. Three things stay as it has them, because no template is known to depend
//! on them: `isdigit` also takes fractions (as `isnumeric` does), `splitlines` ends a line at LF and CR LF only, and
//! `join` writes out what is not a string where Python refuses it. Nothing here keeps the order in which a dict was
//! written: its keys are sorted, as they are wherever JSON is read here.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Calls a method of Python's on a value.
pub(super) fn python_methods(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, method, args) };
    let args = match method {
        "split" => &positional(args, &["sep", "maxsplit"])?,
        "splitlines" => &positional(args, &["keepends"])?,
        _ => args,
    };
    match (method, args) {
        ("title", []) => Ok(title(text).into()),
        ("split", [separator, ..]) if separator.as_str() == Some("") => {
            Err(Error::new(ErrorKind::InvalidOperation, "split has an empty separator"))
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// Arguments in the order of their `names`, with those that were given by name put in their places.
fn positional(args: &[Value], names: &[&str]) -> Result<Vec<Value>, Error> {
    let mut all = args.to_vec();
    // An undefined value would pass for no names at all.
    let Some(named) = all.pop_if(|last| !last.is_undefined() && Kwargs::try_from(last.clone()).is_ok()) else {
        return Ok(all);
    };
    let named = Kwargs::try_from(named)?;
    for name in names.iter().skip(all.len()) {
        all.push(named.get::<Option<Value>>(name)?.unwrap_or(Value::from(())));
    }
    named.assert_all_used()?;
    Ok(all)
}

/// `str.title`: the first letter of every run of letters with case is a capital, the others are small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        if within {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        within = c.is_lowercase() || c.is_uppercase();
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::checkpoint::text::template::{SpecialTokens, Template};

    fn rendered(template: String) -> Result<String, String> {
        Template::parse(template)?.render(&[], false, &SpecialTokens::default())
    }

    /// Every expression as Python itself answers it; `make.py` beside the fixture made it.
    #[test]
    fn methods_equal_python() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../../tests/fixtures/python_methods/expected.json")).unwrap();
        assert!(cases.len() > 60);
        for case in cases {
            let expression = case["expression"].as_str().unwrap();
            // Views of dicts are made lists there too.
            let list = if case["value"].is_array() { "|list" } else { "" };
            let found = rendered(format!("{{{{ ({expression}){list}|tojson }}}}"));
            if case["refused"] == true {
                assert!(found.is_err(), "{expression} is refused by Python, but here it is {found:?}");
                continue;
            }
            let found: Value = serde_json::from_str(&found.unwrap_or_else(|e| panic!("{expression}: {e}"))).unwrap();
            assert_eq!(found, case["value"], "{expression}");
        }
    }

    #[test]
    fn views_of_dicts_can_be_walked_and_counted() {
        let dict = "{% set d = {'a': 1, 'b': [2]} %}";
        let walk = "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.keys()|length }}{{ 1 in d.values() }}";
        assert_eq!(rendered(format!("{dict}{walk}")).unwrap(), "a=1;b=[2];2True");
        assert_eq!(rendered("{{ 'A'.lower() ~ {'a': none}.get('x') }}".into()).unwrap(), "aNone");
    }
}
