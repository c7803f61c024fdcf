"""What the course says around a lesson's own texts, in each language."""

from labs.drawing import MAP as ENGLISH_MAP

MAP = {
    "en": ENGLISH_MAP,
    "de": {
        "title": "Lab {name}: Modus {mode}, Cluster-IP-Adresse {cluster_ip_address} auf jedem Host",
        "trunk": "  über einen Trunk, {name} ({bridge}):",
    },
}

HEADS = {
    "en": {
        "step": "Lab {lab}, step {step} of {steps}",
        "predict": "Predict",
        "run": "Run",
        "observe": "Observe and answer",
        "explain": "That is it.",
        "no": "Not yet.",
        "guessed": "Your guess was {letter}, and it came true.",
        "missed": "Your guess was {letter}; it was {right}.",
        "say": "Your guess, before you look: softnlb lab next {letters}",
        "answer": "Then: softnlb lab check ANSWER        Stuck? softnlb lab hint",
        "next": "Go on: softnlb lab next",
        "end": "This lab is done. Go on: softnlb lab start {following}",
        "over": "That was the last one. softnlb lab down ends the lab.",
        "hint": "Hint {number} of {count}: {text}",
        "hints": "There is no further hint.",
        "pending": "This step waits for its answer: softnlb lab check ANSWER "
        "(--skip leaves it out)",
        "course": "The course, softnlb lab start NUMBER (+ begun, * done):",
        "none": "no lab is running",
        "starts": "the lab starts",
        "gone": "lab {lab} of the course is not running any more: `{command}` starts it anew",
        "look": "measuring in the lab",
    },
    "de": {
        "step": "Lab {lab}, Schritt {step} von {steps}",
        "predict": "Vorhersage",
        "run": "Ausführen",
        "observe": "Beobachten und antworten",
        "explain": "Richtig.",
        "no": "Noch nicht.",
        "guessed": "Ihre Vorhersage {letter} ist eingetroffen.",
        "missed": "Ihre Vorhersage war {letter}; richtig ist {right}.",
        "say": "Ihre Vorhersage, bevor Sie nachsehen: softnlb lab next {letters}",
        "answer": "Danach: softnlb lab check ANTWORT        Ratlos? softnlb lab hint",
        "next": "Weiter: softnlb lab next",
        "end": "Dieses Lab ist geschafft. Weiter: softnlb lab start {following}",
        "over": "Das war das letzte. softnlb lab down beendet das Lab.",
        "hint": "Tipp {number} von {count}: {text}",
        "hints": "Mehr Tipps gibt es nicht.",
        "pending": "Der Schritt wartet auf seine Antwort: softnlb lab check ANTWORT "
        "(--skip lässt ihn aus)",
        "course": "Der Kurs, softnlb lab start NUMMER (+ begonnen, * geschafft):",
        "none": "es läuft kein Lab",
        "starts": "das Lab startet",
        "gone": "Lab {lab} des Kurses läuft nicht mehr: `{command}` startet es neu",
        "look": "im Lab wird gemessen",
    },
}
