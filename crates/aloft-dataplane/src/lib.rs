pub mod data;
pub mod translate;
