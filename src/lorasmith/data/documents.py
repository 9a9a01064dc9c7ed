DOCUMENT_KINDS = (".txt", ".md", ".markdown", ".rst")
