"""Operations of whole models, counted on the meta device."""

from ..extras import explain_missing

explain_missing(__name__)
