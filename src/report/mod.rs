//! Values to tables, pictures and pages. Pure: what comes out is text, and the same values give the same bytes.

pub mod bar;
pub mod doctor;
pub mod table;
