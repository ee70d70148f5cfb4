//! Values to tables, pictures and pages. Pure: what comes out is text, and the same values give the same bytes.

pub mod accuracy;
pub mod bar;
pub mod brief;
pub mod compare;
pub mod doctor;
pub mod guides;
pub mod layout;
pub mod page;
pub mod plot;
pub mod sweep;
pub mod sweep_page;
pub mod table;
