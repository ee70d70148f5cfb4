//! The grids that ship inside, by the name of their file.

/// Names and texts of the bundled grid files.
const BUNDLED: [(&str, &str); 8] = [
    ("builtin", include_str!("../../../grids/builtin.toml")),
    ("m1-8g", include_str!("../../../grids/m1-8g.toml")),
    ("m1-max-32g", include_str!("../../../grids/m1-max-32g.toml")),
    ("m2-8g", include_str!("../../../grids/m2-8g.toml")),
    ("m2-ultra-192g", include_str!("../../../grids/m2-ultra-192g.toml")),
    ("m3-max-128g", include_str!("../../../grids/m3-max-128g.toml")),
    ("m3-max-48g", include_str!("../../../grids/m3-max-48g.toml")),
    ("m3-pro-36g", include_str!("../../../grids/m3-pro-36g.toml")),
];

/// The text of the bundled grid with this name, if there is one.
pub(crate) fn bundled(name: &str) -> Option<&'static str> {
    BUNDLED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Names of the bundled grids.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    BUNDLED.iter().map(|(name, _)| *name)
}
