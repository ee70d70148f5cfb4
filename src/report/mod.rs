//! Values to tables, pictures and pages. Pure: what comes out is text, and the same values give the same bytes.

pub(crate) mod accuracy;
pub(crate) mod bar;
pub(crate) mod brief;
pub(crate) mod columns;
pub(crate) mod compare;
pub(crate) mod compare_csv;
pub(crate) mod doctor;
pub(crate) mod feasible;
pub(crate) mod guides;
pub(crate) mod layout;
pub(crate) mod page;
pub(crate) mod plot;
pub(crate) mod sweep;
pub(crate) mod sweep_page;
pub(crate) mod table;
