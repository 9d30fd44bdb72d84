//! Tokenizes a conversation for a GGUF model, with its chat template.

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use crate::engines::template::{ChatTemplate, parts};
use crate::request::job::Message;
use crate::request::refusal::Refusal;

/// The chat template of a file, if it has one, in the form that it renders.
///
/// # Errors
/// Why it can't be used.
pub(super) fn of(model: &LlamaModel) -> Result<Option<ChatTemplate>, String> {
    let Ok(source) = model.chat_template(None) else {
        return Ok(None);
    };
    let source = source.to_string().map_err(|e| format!("the chat template is not text: {e}"))?;
    let text_of = |token: LlamaToken| {
        let bytes =
            if token.0 < 0 { Vec::new() } else { model.vocab().token_to_piece(token, true, None) };
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (bos, eos) = (text_of(model.vocab().bos()), text_of(model.vocab().eos()));
    ChatTemplate::new(source, bos, eos)?.adapted().map(Some)
}

/// The tokens of a conversation: control tokens are recognized only in text that the template wrote.
pub(super) fn tokens(
    model: &LlamaModel,
    template: Option<&ChatTemplate>,
    messages: &[Message],
) -> Result<Vec<LlamaToken>, Refusal> {
    let vocab = model.vocab();
    let mut tokens = Vec::new();
    for part in parts(template, messages)? {
        let (text, control) = part.text();
        vocab.tokenize_into(text.as_bytes(), &mut tokens, false, control);
    }
    begin(model, &mut tokens);
    Ok(tokens)
}

/// Prepends the beginning-of-text token if the model expects one and it is missing.
pub(super) fn begin(model: &LlamaModel, tokens: &mut Vec<LlamaToken>) {
    let vocab = model.vocab();
    let bos = vocab.bos();
    if vocab.should_add_bos() && bos.0 >= 0 && tokens.first() != Some(&bos) {
        tokens.insert(0, bos);
    }
}
