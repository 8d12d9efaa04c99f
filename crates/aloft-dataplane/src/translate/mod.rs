//! Literals to and from JSON-schema launch forms (`flyteidl2.workflow.TranslatorService`).
